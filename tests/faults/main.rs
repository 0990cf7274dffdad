//! What happens to connections when the machine is against them: a network that swallows packets,
//! no descriptors, no threads, signals, clocks that jump, processes that sleep, an environment that
//! says what TLS trusts. Linux only.
//!
//! A program of its own. Every scenario has its client in a child process ([`bot`]), which can be
//! starved, stopped and traced alone; those of `network` run in a network namespace of their own
//! besides. What the machine lacks for a scenario is told, and the scenario skipped.

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

/// What this process is, when it is not the test itself.
#[cfg(target_os = "linux")]
const ROLE: &str = "TAUTLINE_FAULTS_ROLE";

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("SKIPPED: faults is made by means of Linux");
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

/// Runs a scenario and says so.
#[cfg(target_os = "linux")]
fn scenario(name: &str, run: impl FnOnce()) {
    let began = std::time::Instant::now();
    run();
    println!("{name}: ok, {:.1?}", began.elapsed());
}

/// Says loudly that a scenario was skipped.
#[cfg(target_os = "linux")]
fn skip(name: &str, why: &str) {
    println!("SKIPPED: {name}: {why}");
}

/// Whether a command can be run here at all, and succeeds.
#[cfg(target_os = "linux")]
fn succeeds(program: &str, arguments: &[&str]) -> bool {
    use std::process::{Command, Stdio};
    let status =
        Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
