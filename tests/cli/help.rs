//! Each help fits on a screen, and completions know every option.

use crate::support::tautline;

/// Columns and rows of the smallest terminal that help has to fit on.
const SCREEN: (usize, usize) = (80, 24);

const TOPICS: [&str; 10] = [
    "tail",
    "ping",
    "bench",
    "record",
    "replay",
    "watch",
    "help",
    "completions",
    "connection",
    "timing",
];

#[test]
fn each_help_fits_on_a_screen_and_has_examples() {
    let of_program = vec![vec!["--help"], vec!["help"], vec!["-h"]];
    let of_topics = TOPICS.iter().map(|topic| vec!["help", topic]);
    for arguments in of_program.into_iter().chain(of_topics) {
        let output = tautline(&arguments).output().expect("it starts");
        let text = String::from_utf8(output.stdout).expect("it prints UTF-8");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        // A row is left for the prompt.
        let rows = text.lines().count() + 1;
        assert!(widest < SCREEN.0 && rows <= SCREEN.1, "{arguments:?}: {widest} by {rows}\n{text}");
        let is_of_options = matches!(arguments[..], ["help", "connection" | "timing"]);
        assert!(is_of_options || text.contains("Examples:"), "{text}");
    }
}

#[test]
fn the_help_of_a_command_is_that_of_its_flag() {
    for topic in TOPICS.iter().filter(|topic| !["connection", "timing"].contains(topic)) {
        let by_flag = tautline(&[topic, "--help"]).output().expect("it starts");
        let by_command = tautline(&["help", topic]).output().expect("it starts");
        assert!(!by_flag.stdout.is_empty());
        assert_eq!(
            String::from_utf8_lossy(&by_flag.stdout),
            String::from_utf8_lossy(&by_command.stdout)
        );
    }
}

#[test]
fn help_on_nothing_is_wrong_usage() {
    let output = tautline(&["help", "nothing"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("'nothing'"));
}

#[test]
fn completions_know_the_options_that_help_hides() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tautline(&["completions", shell]).output().expect("it starts");
        let script = String::from_utf8(output.stdout).expect("it prints UTF-8");
        for option in ["exit-on-eof", "ping-interval", "subprotocol"] {
            assert!(script.contains(option), "{shell} does not complete {option}");
        }
    }
}
