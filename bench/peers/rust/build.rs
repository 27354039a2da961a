//! What `describe` answers is read where it is true: Cargo.lock and the compiler that builds.

use std::{env, fs, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=Cargo.lock");
    let lock = fs::read_to_string("Cargo.lock").expect("Cargo.lock is there when cargo builds");
    let set = |name, value: &str| println!("cargo:rustc-env={name}={value}");
    set("PINGORA", version(&lock, "pingora-load-balancing"));
    set("KETAMA", version(&lock, "pingora-ketama"));

    let given = |name| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let output = Command::new(given("RUSTC"))
        .arg("--version")
        .output()
        .expect("rustc says its version");
    let rustc = String::from_utf8(output.stdout).expect("rustc speaks UTF-8");
    let number = rustc
        .split_whitespace()
        .nth(1)
        .expect("rustc NUMBER (COMMIT DATE)");
    let (target, level) = (given("TARGET"), given("OPT_LEVEL"));
    set(
        "RUNTIME",
        &format!("rustc{number} {target} opt-level={level}"),
    );
}

/// The version of a package by the lock file, whose blocks are `name = "N"`, `version = "V"`.
fn version<'a>(lock: &'a str, package: &str) -> &'a str {
    let name = format!("name = \"{package}\"\nversion = \"");
    let (_, rest) = lock
        .split_once(&name)
        .expect("the package is in Cargo.lock");
    rest.split('"').next().expect("split gives one part")
}
