# chainrule on a CPU, with its bundled models.
#
#   docker build -t chainrule .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" chainrule
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" chainrule sample mnist_row_lstm -n 4 --out digits.png
#
# Without a command it draws the pictures of `make demo` into the folder demo. Files appear in the mounted folder.
FROM python:3.13-slim

# The compiler builds the fast kernels at first use, for the processor at hand.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# The CPU build of torch: the default build brings several gigabytes for GPUs.
COPY constraints.txt /src/
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
    "$(sed -n 's/^torch==.*/&/p' /src/constraints.txt)"

COPY pyproject.toml README.md LICENSE /src/
COPY docs/licences.md /src/docs/
COPY src /src/src
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[server]"

# Any user may run the image: caches are in a home that everybody can write to.
ENV HOME=/home/chainrule
RUN useradd --create-home --uid 1000 chainrule && chmod 1777 /home/chainrule && install -d -o chainrule /work
USER 1000
WORKDIR /work

ENTRYPOINT ["chainrule"]
CMD ["demo", "--out", "demo", "--force"]
