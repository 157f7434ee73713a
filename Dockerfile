# syntax=docker/dockerfile:1
# ich-seq for CPUs. docs/howto/container.md says how it is built and run.

FROM python:3.11-slim AS build
WORKDIR /source
RUN python -m venv /opt/ich-seq
COPY pyproject.toml README.md LICENSE ./
COPY ich_seq ich_seq
ARG EXTRAS=openvino
# pip takes torch from the index that it is set to; a file of settings, if one is given, does not stay in the image.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/ich-seq/bin/pip install --no-cache-dir --disable-pip-version-check ".[$EXTRAS]"

FROM python:3.11-slim
COPY --from=build /opt/ich-seq /opt/ich-seq
# What libraries keep for themselves goes where a read-only container can write.
ENV PATH=/opt/ich-seq/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["ich-seq"]
CMD ["--help"]
