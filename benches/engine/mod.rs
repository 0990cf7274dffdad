//! The TLS engine that the environment chooses: `ENGINE=rustls`, with the feature `rustls`.

use tautline::Builder;

pub(crate) fn chosen(builder: Builder) -> Builder {
    match std::env::var("ENGINE").as_deref() {
        #[cfg(feature = "rustls")]
        Ok("rustls") => builder.tls_engine(tautline::TlsEngine::Rustls),
        Ok(engine) => panic!("this program is built without the engine {engine}"),
        Err(_) => builder,
    }
}
