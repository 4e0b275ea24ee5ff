# What people type; `.ci/run` does the same without `just`.

# List the recipes.
_default:
    @just --list

# Formatting is rustfmt's.
fmt-check:
    cargo fmt --check
    cargo fmt --check --manifest-path fuzz/Cargo.toml

# No warnings, tests included.
lint:
    cargo clippy --all-targets --locked -- -D warnings

# All tests; real servers where this machine has what they need.
test *args:
    cargo test --locked {{ args }}

# The documentation, private items too, without a broken link.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --locked

# Licences, sources, and crates that must not come in. Advisories need their database from the network.
deny:
    cargo deny --all-features check licenses bans sources

# The integration tests, none left out, with each of these 8.x versions beside the newest 9.x.
live versions="8.4.1 8.12.2 8.19.21":
    for version in {{ versions }}; do \
        REQUIRE_ELASTICSEARCH=1 ELASTICSEARCH_8="$version" cargo test --locked --test it || exit 1; \
    done

# Fuzz one target for so many seconds (`cargo install cargo-fuzz`); what it finds joins `fuzz/corpus`.
fuzz target seconds="60":
    mkdir -p fuzz/found/{{ target }}
    cargo fuzz run -s none {{ target }} fuzz/found/{{ target }} fuzz/corpus/{{ target }} -- \
        -max_total_time={{ seconds }} -timeout=10

# One static binary, and its size. Needs `rustup target add` of the target and a musl C compiler.
release-build target="x86_64-unknown-linux-musl":
    cargo build --release --locked --target {{ target }}
    ls -l target/{{ target }}/release/teleport-event-indexer

# Compile for Windows, on Linux (see docs/windows.md): it keeps compiling, and shows nothing else.
windows:
    CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc \
        cargo clippy --locked --target x86_64-pc-windows-gnu -- -D warnings
    CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc \
        cargo build --release --locked --target x86_64-pc-windows-gnu
    ls -l target/x86_64-pc-windows-gnu/release/teleport-event-indexer.exe

# The whole thing on this machine, with stand-ins for both ends.
demo *args:
    cargo run --release --locked -- demo {{ args }}

# Measures: `just bench document`, `just bench pipeline -- sink` (without an argument it says what there is).
bench name="pipeline" *args:
    cargo bench --locked --bench {{ name }} {{ args }}
