# Build: docker build --tag ledger-gateway .
# Run:   docker run --publish 8080:8080 --env GATEWAY_LEDGER__BASE_URL=… --env GATEWAY_AUTH__SECRET=… ledger-gateway

FROM python:3.13-slim AS builder

WORKDIR /src
# Without pip of its own, so that the shipped environment cannot install anything.
RUN python -m venv --without-pip /opt/ledger-gateway

# Before the code, so that a change of code does not fetch the dependencies again.
# --only-binary: there is no compiler here, and no code of a stranger's runs during the build.
COPY requirements.lock ./
RUN pip --python /opt/ledger-gateway/bin/python install --no-cache-dir --only-binary :all: \
        --require-hashes --requirement requirements.lock

COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY schemas schemas
# setuptools comes from the lock file; once the project is built it has no more use.
RUN pip --python /opt/ledger-gateway/bin/python install --no-cache-dir --no-deps --no-build-isolation . \
    && pip --python /opt/ledger-gateway/bin/python uninstall --yes setuptools


FROM python:3.13-slim

COPY --from=builder /opt/ledger-gateway /opt/ledger-gateway
COPY config.yaml /etc/ledger-gateway/config.yaml

# Inside a container loopback reaches nobody. 8081 has metrics and health without a login:
# publish it only where your monitoring is.
ENV PATH=/opt/ledger-gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_SERVER__HOST=0.0.0.0 \
    GATEWAY_OPS__HOST=0.0.0.0
EXPOSE 8080 8081

# A number, so that a cluster can see that it is not root.
USER 10001:10001

# Live, not ready: a container found unhealthy gets replaced, which cannot bring back a key server
# and would cut short a gateway that is draining. Whether to send traffic is for the load balancer,
# and it asks /health/ready. The empty ProxyHandler keeps a proxy from the environment out of it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('GATEWAY_SERVER__PORT', '8080') + '/health/live', timeout=2)"]

STOPSIGNAL SIGTERM
ENTRYPOINT ["ledger-gateway"]
CMD ["serve", "--config", "/etc/ledger-gateway/config.yaml"]
