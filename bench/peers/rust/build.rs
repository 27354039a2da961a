//! Tells the program which versions it is built of: those of Cargo.lock, and the compiler's.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    let lock = std::fs::read_to_string("Cargo.lock").expect("Cargo.lock");
    for (name, variable) in [
        ("pingora-load-balancing", "PINGORA_VERSION"),
        ("pingora-ketama", "KETAMA_VERSION"),
    ] {
        let entry = format!("name = \"{name}\"\nversion = \"");
        let (_, rest) = lock.split_once(&entry).expect("an entry in Cargo.lock");
        let (version, _) = rest.split_once('"').expect("a version");
        println!("cargo::rustc-env={variable}={version}");
    }
    let rustc = std::env::var("RUSTC").expect("RUSTC");
    let said = Command::new(rustc).arg("--version").output().expect("rustc");
    let version = String::from_utf8(said.stdout).expect("text");
    println!("cargo::rustc-env=COMPILER={}", version.trim());
}
