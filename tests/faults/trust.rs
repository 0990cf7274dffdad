//! TLS settings that come from the environment of a process: the roots of the system, and the
//! versions that OpenSSL speaks.

use std::process::{Command, Stdio};

use crate::bot::Bot;
use crate::scarcity::echo;
use crate::{scenario, skip, succeeds};

/// Makes the server's root the only root of the system.
pub(crate) const ROOTS: [(&str, &str); 1] =
    [("SSL_CERT_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/src/testing/certificates/root.pem"))];

pub(crate) fn run() {
    scenario("the roots of the system, and only those that were given", roots);
    old_tls();
}

fn roots() {
    let server = echo();
    let mut bot = Bot::spawn_by(&[], &ROOTS);
    bot.start_with("roots_of_the_system", &server.url());
    bot.expect("opened 1");
    bot.stop();
    // Without the variable the same client fails.
    let mut bot = Bot::spawn();
    bot.start_with("roots_of_the_system", &server.url());
    bot.expect("stopped tls");
    bot.stop();
    let mut bot = Bot::spawn_by(&[], &ROOTS);
    bot.start_with("only_the_root_of_others", &server.url());
    bot.expect("stopped tls");
    bot.stop();
}

fn old_tls() {
    const NAME: &str = "TLS 1.1, refused and allowed";
    const CONFIG: (&str, &str) =
        ("OPENSSL_CONF", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/old_tls.cnf"));
    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/testing/certificates");
    const WHY: &str = "it needs an openssl that speaks TLS 1.1";
    if cfg!(rustls_by_default) {
        return skip(NAME, "rustls has no TLS 1.1");
    }
    if !succeeds("openssl", &["ciphers", "-tls1_1"]) {
        return skip(NAME, WHY);
    }
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-tls1_1"]).env(CONFIG.0, CONFIG.1);
    command.args([
        "-cert",
        &format!("{FOLDER}/localhost.pem"),
        "-key",
        &format!("{FOLDER}/localhost.key"),
    ]);
    let server = Bot::spawn_program(command.stderr(Stdio::null()));
    // `ACCEPT 127.0.0.1:40000`
    let told = server.expect("ACCEPT ");
    let port = told.rsplit(':').next().expect("a split has a part");
    let client = format!(
        "{}={} openssl s_client -tls1_1 -connect localhost:{port} </dev/null",
        CONFIG.0, CONFIG.1
    );
    if !succeeds("sh", &["-c", &client]) {
        return skip(NAME, WHY);
    }
    scenario(NAME, || {
        let url = format!("wss://localhost:{port}/");
        let mut bot = Bot::spawn_by(&[], &[CONFIG]);
        bot.start(&url);
        bot.expect("dial_failed tls");
        bot.stop();
        let mut bot = Bot::spawn_by(&[], &[CONFIG]);
        bot.start_with("old_tls", &url);
        // The opening handshake has come through TLS, and the server does not answer it.
        server.expect("GET / HTTP/1.1");
        bot.stop();
    });
}
