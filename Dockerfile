# syntax=docker/dockerfile:1

# The same Debian release builds and runs, so that the C library is never older than the one that
# was linked against.
FROM rust:1.95-trixie AS build
WORKDIR /src
# Only what the compiler reads. rust-toolchain.toml stays out: it would have rustup fetch the
# formatter and the linter.
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY proto proto
COPY templates templates
COPY ilm ilm
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin teleport-event-indexer \
    && install -D target/release/teleport-event-indexer /out/teleport-event-indexer \
    && mkdir /out/empty

FROM debian:trixie-slim
# The system's certificate authorities, for an Elasticsearch behind a public certificate.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/teleport-event-indexer /usr/local/bin/teleport-event-indexer
# A new volume takes over the owner of the directory that it is mounted on.
COPY --from=build --chown=65532:65532 /out/empty /var/lib/teleport-event-indexer
COPY --from=build --chown=65532:65532 /out/empty /identity
ENV EVENT_INDEXER_STORAGE=/var/lib/teleport-event-indexer
USER 65532:65532
ENTRYPOINT ["teleport-event-indexer"]
CMD ["start"]
