//! `ntransformer completions` and `ntransformer man`: every flag is there, and shells and man accept them.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    process::{Command, Stdio},
};

use crate::setup;

const SUBCOMMANDS: [&str; 7] = ["bench", "completions", "inspect", "man", "perplexity", "synth", "tokenize"];

fn stdout(args: &[&str]) -> String {
    let output = Command::new(setup::ntransformer()).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The long flags of a command, as its help lists them.
fn flags(command: &[&str]) -> BTreeSet<String> {
    let help = stdout(&[command, &["--help"]].concat());
    let entries = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let names = entries.filter_map(|line| line.split([' ', ',']).find(|word| word.starts_with("--")));
    names.map(str::to_owned).collect()
}

/// Feeds `input` to a program that may not be there: `None` then, else what it wrote, if it was content.
fn accepted(program: &str, args: &[&str], input: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        child => child.unwrap(),
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // Beside the reading, or both sides wait once the pipes are full.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaint.is_empty(), "{program} {args:?}: {complaint}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn every_shell_completes_every_flag() {
    let all: Vec<&str> = [""].into_iter().chain(SUBCOMMANDS).collect();
    let commands: Vec<Vec<&str>> = all.iter().map(|name| name.split_whitespace().collect()).collect();
    let flags: BTreeSet<String> = commands.iter().flat_map(|command| flags(command)).collect();
    assert!(flags.contains("--vram-budget") && flags.contains("--n-depth") && flags.len() > 20, "{flags:?}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = stdout(&["completions", shell]);
        for flag in &flags {
            // fish has them without their dashes.
            let bare = flag.trim_start_matches('-');
            let found = script.contains(flag) || (shell == "fish" && script.contains(&format!("-l {bare}")));
            assert!(found, "{shell}: {flag} is missing");
        }
        for name in SUBCOMMANDS {
            assert!(script.contains(name), "{shell}: {name} is missing");
        }
        let check: &[&str] = match shell {
            "bash" | "zsh" => &["-n"],
            "fish" => &["--no-execute"],
            _ => continue,
        };
        accepted(shell, check, &script);
    }
    let unknown = Command::new(setup::ntransformer()).args(["completions", "cmd"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

/// bash's own answer to a TAB after these words.
fn completed(words: &[&str]) -> Option<BTreeSet<String>> {
    let script = stdout(&["completions", "bash"]);
    let words: Vec<_> = ["ntransformer"].iter().chain(words).map(|word| format!("'{word}'")).collect();
    let ask = format!(
        "COMP_WORDS=({}); COMP_CWORD={}; _ntransformer ntransformer \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        words.join(" "),
        words.len() - 1
    );
    let answer = accepted("bash", &["--norc"], &(script + "\n" + &ask))?;
    Some(answer.lines().map(str::to_owned).collect())
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    let Some(answer) = completed(&["be"]) else { return };
    assert_eq!(answer, set(&["bench"]));
    assert_eq!(completed(&["bench", "--n-"]).unwrap(), set(&["--n-buffers", "--n-depth", "--n-gen", "--n-prompt"]));
    assert_eq!(completed(&["bench", "--output", ""]).unwrap(), set(&["csv", "json", "md"]));
    assert_eq!(completed(&["--vram"]).unwrap(), set(&["--vram-budget"]));
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new/man1");
    stdout(&["man", folder.to_str().unwrap()]);
    let page = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(stdout(&["man"]), page("ntransformer.1"));
    for command in [""].into_iter().chain(SUBCOMMANDS) {
        let (words, name): (Vec<&str>, _) = match command {
            "" => (Vec::new(), "ntransformer.1".to_owned()),
            command => (vec![command], format!("ntransformer-{command}.1")),
        };
        let roff = page(&name);
        let plain = roff.replace("\\-", "-");
        for flag in flags(&words) {
            assert!(plain.contains(&flag), "{name}: {flag} is missing");
        }
        // Where there is a man, it renders the page without a warning.
        let groff = ["-man", "-Tutf8", "-ww", "-z"];
        accepted("groff", &groff, &roff);
        let path = folder.join(&name);
        if let Some(shown) = accepted("man", &["-l", path.to_str().unwrap()], "") {
            assert!(shown.contains("SYNOPSIS"), "{name}: {shown}");
        }
    }
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = Command::new(setup::ntransformer()).arg("man").arg(&file).output().unwrap();
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        refused.status.code() == Some(1) && message.contains("file: the manual pages cannot be written"),
        "{message}"
    );
}
