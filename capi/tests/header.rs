//! The header is what the source says: `UPDATE_HEADER=1 cargo test --test header` writes it.

use std::collections::BTreeSet;
use std::path::Path;

const DOC_LABELS: [&str; 3] = ["Threads:", "Blocks:", "Errors:"];

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(folder().join("cbindgen.toml")).expect("it is valid");
    let bindings = cbindgen::Builder::new().with_crate(folder()).with_config(config).generate();
    let mut header = Vec::new();
    bindings.expect("the source is valid").write(&mut header);
    String::from_utf8(header).expect("it is text")
}

fn committed() -> String {
    std::fs::read_to_string(folder().join("include/tautline.h")).unwrap_or_default()
}

#[test]
fn the_committed_header_is_what_cbindgen_makes() {
    let generated = generated();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(folder().join("include/tautline.h"), &generated).expect("it can be written");
    }
    let committed = committed();
    let difference = committed.lines().zip(generated.lines()).find(|(left, right)| left != right);
    assert!(
        committed == generated,
        "include/tautline.h is not what the source makes, from {difference:?} on: run the test \
         with UPDATE_HEADER=1"
    );
}

/// Returns the functions of the header, each with its comment.
fn functions(header: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut comment = String::new();
    for text in header.lines() {
        let trimmed = text.trim_start();
        if trimmed.starts_with("/**") {
            comment.clear();
        }
        if trimmed.starts_with("/**") || trimmed.starts_with('*') {
            comment.push_str(trimmed.trim_start_matches(['/', '*']));
            continue;
        }
        // A declaration begins at the left margin, where no field stands.
        let is_declaration = !text.starts_with([' ', '#', '}']) && !text.starts_with("typedef");
        let name = text.split('(').next().and_then(|before| before.rsplit([' ', '*']).next());
        if let Some(name) = name.filter(|name| is_declaration && name.starts_with("tl_")) {
            if text.contains('(') {
                found.push((name.to_owned(), std::mem::take(&mut comment)));
            }
        }
    }
    found
}

#[test]
fn each_function_says_which_threads_may_call_it_whether_it_blocks_and_how_it_fails() {
    let functions = functions(&committed());
    assert!(functions.len() >= 40, "{} functions", functions.len());
    for (name, comment) in functions {
        for label in DOC_LABELS {
            assert!(comment.contains(label), "{name} does not say {label}");
        }
        // Whatever passes memory says whose it is.
        let is_plain =
            ["_version", "_now", "_state", "_wake", "_wake_at", "_ping", "_stop", "stable"];
        let passes_memory = !is_plain.iter().any(|end| name.ends_with(end));
        let says = comment.contains("Ownership:");
        let may_leave_out = name.ends_with("request_stop") || name.ends_with("is_stopping");
        assert!(says || !passes_memory || may_leave_out, "{name} does not say Ownership:");
    }
}

#[test]
fn the_library_exports_what_the_header_declares_and_nothing_else() {
    // `capi/check` names the library that it has built.
    let Some(library) = std::env::var_os("TAUTLINE_LIBRARY") else {
        println!("SKIPPED: TAUTLINE_LIBRARY names no library");
        return;
    };
    let listed = std::process::Command::new("nm")
        .args(["-D", "--defined-only", "--format=posix"])
        .arg(library)
        .output()
        .expect("nm runs");
    assert!(listed.status.success(), "nm fails");
    let listed = String::from_utf8(listed.stdout).expect("names are text");
    let exported: BTreeSet<String> = listed
        .lines()
        .filter_map(|symbol| symbol.split_whitespace().next().map(str::to_owned))
        .collect();
    let declared: BTreeSet<String> =
        functions(&committed()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(exported, declared);
}
