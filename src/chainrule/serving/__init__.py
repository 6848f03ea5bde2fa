"""The server: an engine that draws the images of many requests in one batch, OpenAI's image endpoints and a native API
over it, and a page to draw with.  Needs the extra `server` (fastapi, uvicorn, gradio); imports everything below the
command line.
"""
