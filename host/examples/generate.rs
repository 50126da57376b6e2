//! Continues a text: `cargo run --release -p host --example generate -- [MODEL.gguf [PROMPT]]`.

use std::{
    env,
    error::Error,
    io::{self, Write},
    ops::ControlFlow,
};

use ntransformer::{DeviceChoice, Engine, EngineOptions, Event, GenerateOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let prompt = args.get(1).map_or("Once upon a time", String::as_str);
    run(DeviceChoice::Auto, args.first().map(String::as_str), prompt, &mut io::stdout())
}

/// Writes 40 tokens that follow `prompt` to `out`, and what they cost to stderr.
pub fn run(device: DeviceChoice, model: Option<&str>, prompt: &str, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let options = EngineOptions { device, ..Default::default() };
    let mut engine = match model {
        Some(path) => Engine::open(path, &options)?,
        None => Engine::demo(&options)?,
    };
    let prompt = engine.tokenize(prompt)?;
    let options = GenerateOptions { max_new: Some(40), ..Default::default() };
    let mut written = Ok(());
    let answer = engine.generate(&prompt, &options, |event| {
        if let Event::Text(text) = event {
            written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    writeln!(out)?;
    eprintln!("{} on {}: {:.1} tok/s", engine.config().arch.name(), engine.device(), answer.decode.rate());
    Ok(())
}
