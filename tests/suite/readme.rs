//! The README tells the truth about the command line.

use std::{collections::BTreeSet, fs, process::Command};

use crate::setup;

/// The long flags in a text: `--name`.
fn flags(text: &str) -> BTreeSet<&str> {
    let starts = text.match_indices("--").map(|(at, _)| &text[at..]);
    let names = starts.map(|rest| {
        let end = rest[2..].find(|c: char| !(c.is_ascii_lowercase() || c == '-')).map_or(rest.len(), |end| end + 2);
        &rest[..end]
    });
    names.filter(|name| name.len() > 2 && name.as_bytes()[2] != b'-').collect()
}

fn help(args: &[&str]) -> String {
    let output = Command::new(setup::ntransformer()).args(args).arg("--help").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of a README's table whose first cell is a flag, and the first cells.
fn table(readme: &str) -> String {
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `-")?.split(" | ").next());
    rows.map(|cell| format!("-{cell}\n")).collect()
}

#[test]
fn every_flag_is_in_the_table() {
    let readme = fs::read_to_string(setup::root().join("README.md")).unwrap();
    let (help, table) = (help(&[]), table(&readme));
    let expected: BTreeSet<_> = flags(&help).into_iter().filter(|f| !["--help", "--version"].contains(f)).collect();
    assert!(expected.len() > 10, "{help}");
    assert_eq!(flags(&table), expected);
}

#[test]
fn every_subcommand_is_named() {
    let readme = fs::read_to_string(setup::root().join("README.md")).unwrap();
    let help = help(&[]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let mut found = 0;
    // The descriptions of long entries are on lines of their own, further in.
    for line in commands.filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
        let name = line.split_whitespace().next().unwrap();
        if name != "help" {
            assert!(readme.contains(&format!("ntransformer {name}")), "README.md does not name `ntransformer {name}`");
            found += 1;
        }
    }
    assert!(found >= 3, "{help}");
}
