# syntax=docker/dockerfile:1
# One image for all commands: receiver, worker, beat, flower, migrate, and every other `moorage` command.

FROM python:3.13-slim AS builder
# VIDEO=no omits `av`, whose wheels contain GPL codecs: videos are then stored without a poster (see NOTICE).
ARG VIDEO=yes
RUN python -m venv /opt/venv
COPY requirements.runtime.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/pip install --disable-pip-version-check --only-binary :all: --require-hashes \
        -r /tmp/requirements.runtime.lock \
    && if [ "$VIDEO" = no ]; then /opt/venv/bin/pip uninstall --yes av; fi
COPY . /src
RUN /opt/venv/bin/pip install --disable-pip-version-check --no-deps /src && /opt/venv/bin/pip uninstall --yes pip

FROM python:3.13-slim
# /spool has the temporary files of downloads; they have no name, so a killed process leaves nothing behind.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin moorage \
    && install -d -o moorage -g moorage /spool
COPY --from=builder /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TMPDIR=/spool \
    LOG_FORMAT=json
USER 10001
VOLUME /spool
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["moorage"]
CMD ["--help"]
