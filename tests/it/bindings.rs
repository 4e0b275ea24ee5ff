//! The generated bindings in `src/teleport/proto/` are what `proto/*.proto` gives. Run with
//! `UPDATE_BINDINGS=1` to write them anew.

use std::path::Path;

#[test]
fn bindings_are_those_of_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let generated = tempfile::tempdir().unwrap();
    let files = protox::compile(
        [
            "proto/auditlog.proto",
            "proto/auth.proto",
            "proto/transport.proto",
        ]
        .map(|file| root.join(file)),
        [root.join("proto")],
    )
    .unwrap();
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(generated.path())
        .compile_fds(files)
        .unwrap();
    for (from, to) in [
        ("teleport.auditlog.v1.rs", "auditlog.rs"),
        ("proto.rs", "auth.rs"),
        ("teleport.transport.v1.rs", "transport.rs"),
    ] {
        let fresh = std::fs::read_to_string(generated.path().join(from)).unwrap();
        let path = root.join("src/teleport/proto").join(to);
        if std::env::var_os("UPDATE_BINDINGS").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            fresh == committed,
            "{} is not what proto/ gives; run the test with UPDATE_BINDINGS=1",
            path.display()
        );
    }
}
