"""Models that judge images, so that the best of several candidates can be kept (`decoding.rejection`)."""
