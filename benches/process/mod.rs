//! A server in a process of its own: this program again, told by an environment variable; and the
//! CPUs that its threads and those of the client have.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::thread::{CpuSet, sched_setaffinity};

/// The server's process, which ends with this value.
pub(crate) struct ServerProcess {
    process: Child,
    /// The address that it has printed.
    pub(crate) address: String,
}

impl ServerProcess {
    /// Starts this program with `variable` set, and waits until it has printed its address.
    pub(crate) fn start(variable: &str) -> Self {
        let own = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(own);
        let mut process = command
            .env(variable, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("processes can be started");
        let mut address = String::new();
        let output = process.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut address).expect("it prints its address");
        ServerProcess { process, address: address.trim().to_owned() }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // The server ends in no other way.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Binds this thread, and those that it starts, to these CPUs.
pub(crate) fn stay_on(cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    sched_setaffinity(None, &set).expect("the machine has two CPUs");
}
