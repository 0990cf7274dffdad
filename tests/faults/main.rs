//! Tests of faults of the machine: a network that drops packets, no descriptors, no threads,
//! signals, clocks that jump, processes that sleep, and an environment that decides what TLS
//! trusts. Linux only.
//!
//! Every scenario runs its client in a child process ([`bot`]), which can be starved, stopped and
//! traced alone. Those of `network` also run in a network namespace of their own. A scenario for
//! which the machine lacks something is skipped, and says what is missing.

#[cfg(target_os = "linux")]
mod bot;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod scarcity;
#[cfg(target_os = "linux")]
mod time;
#[cfg(target_os = "linux")]
mod trust;

/// The environment variable that gives a child process its role.
#[cfg(target_os = "linux")]
const ROLE: &str = "TAUTLINE_FAULTS_ROLE";

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("SKIPPED: these faults need Linux");
}

#[cfg(target_os = "linux")]
fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("bot") => bot::run(),
        Ok("server") => bot::run_server(),
        Ok("namespace") => network::run(),
        _ => {
            trust::run();
            scarcity::run();
            time::run();
            network::run_in_namespace();
        }
    }
}

/// Runs a scenario, and prints its name and how long it took.
#[cfg(target_os = "linux")]
fn scenario(name: &str, run: impl FnOnce()) {
    let began = std::time::Instant::now();
    run();
    println!("{name}: ok, {:.1?}", began.elapsed());
}

/// Prints that a scenario is skipped.
#[cfg(target_os = "linux")]
fn skip(name: &str, why: &str) {
    println!("SKIPPED: {name}: {why}");
}

/// Returns true if the command exists and succeeds.
#[cfg(target_os = "linux")]
fn succeeds(program: &str, arguments: &[&str]) -> bool {
    use std::process::{Command, Stdio};
    let status =
        Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
