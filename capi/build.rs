//! Gives the shared library its SONAME, so that programs find the version that they were linked
//! with.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    // The number goes up with TL_ABI_VERSION, when programs have to be compiled again.
    match os.as_str() {
        "linux" | "android" | "freebsd" | "netbsd" | "openbsd" => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libtautline.so.0");
        }
        "macos" => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libtautline.0.dylib");
        }
        _ => {}
    }
}
