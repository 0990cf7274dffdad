//! Tests that nothing stays behind. They run in a process of their own, because they count the
//! threads, descriptors and bytes of the whole process.

#[cfg(target_os = "linux")]
mod rounds;

#[cfg(target_os = "linux")]
fn main() {
    rounds::run();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("SKIPPED: threads and descriptors are counted in /proc");
}
