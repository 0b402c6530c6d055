//! Every command explains itself. That this test needs the binary also makes cargo build it for all tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

fn help(command: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_trierarch")).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_explains_itself() {
    let all = help(&[]);
    let commands = all.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        // Further lines of a command's text stand deeper.
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    for expected in ["server", "demo", "image", "reset", "apiserver", "kubelet"] {
        assert!(commands.contains(&expected), "{expected} in {commands:?}");
    }
    for command in commands {
        let text = help(&[command]);
        let (about, usage) = text.split_once("\n\nUsage: ").unwrap_or_else(|| panic!("{command}: {text}"));
        assert!(!about.trim().is_empty(), "{command} says what it is for");
        assert!(usage.contains(command), "{command}: {usage}");
    }
}
