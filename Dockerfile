# syntax=docker/dockerfile:1

# A static program in an image with nothing else: no shell, no package manager, no C library.
FROM rust:1.95-trixie AS build
# Static, so that the image below needs no C library; the linker and two C libraries of ours need musl's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends musl-tools=1.2.* \
    && rm -rf /var/lib/apt/lists/* \
    && rustup target add "$(uname -m)-unknown-linux-musl"
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
    target="$(uname -m)-unknown-linux-musl" \
    && export CC_x86_64_unknown_linux_musl=musl-gcc CC_aarch64_unknown_linux_musl=musl-gcc \
    && cargo build --release --locked --target "$target" --bin teleport-event-indexer \
    && install -D "target/$target/release/teleport-event-indexer" /out/teleport-event-indexer \
    && mkdir /out/empty

FROM scratch
# The system's certificate authorities, for an Elasticsearch behind a public certificate.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/teleport-event-indexer /usr/local/bin/teleport-event-indexer
# A new volume takes over the owner of the directory that it is mounted on.
COPY --from=build --chown=65532:65532 /out/empty /var/lib/teleport-event-indexer
COPY --from=build --chown=65532:65532 /out/empty /identity
# For `demo`, and for what SQLite and `verify` put aside.
COPY --from=build --chown=65532:65532 /out/empty /tmp
ENV EVENT_INDEXER_STORAGE=/var/lib/teleport-event-indexer \
    PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["teleport-event-indexer"]
CMD ["start"]
