//! How fast kernels read their memory: matrix times vector for each tensor type, and attention over the KV cache.
//!
//! A decoded token reads every weight and every key and value once, so these GB/s bound the tokens a second. They are printed
//! beside those of a kernel that only reads, on the same device in the same run.
//!
//! `cargo bench` measures the CPU, and the first GPU if there is one; `cargo bench -- --help` says how to measure less.

mod attention;
mod boundary;
mod cpu;
mod cuda;
mod report;
mod timing;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use ntransformer::device::{
    DeviceError,
    cuda::{cust::CustDriver, driver::Driver},
};
use quant::TensorType;

use report::Report;

type Result<T> = std::result::Result<T, DeviceError>;

/// Rows and columns of a matrix.
type Shape = (usize, usize);

/// Measures how fast kernels read their memory.
#[derive(Parser)]
#[command(name = "cargo bench --")]
struct Args {
    /// What to measure, all if absent: cpu, gpu (matrices on it), attention, boundary (from one kernel into the next one), read (the
    /// yardstick alone), emulator (the GPU's part without a GPU; its times mean nothing); tensor types (Q4_K, or q4 for all of
    /// that name); shapes, rows x columns (4096x14336).
    #[arg(value_name = "WHAT")]
    filters: Vec<String>,
    /// Writes every measurement into FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Cpu,
    Gpu,
    Attention,
    Boundary,
    Read,
    Emulator,
}

/// What is to be measured.
#[derive(Default)]
struct Selection {
    parts: Vec<Part>,
    types: Vec<TensorType>,
    shapes: Vec<Shape>,
}

impl Selection {
    fn new(filters: &[String]) -> std::result::Result<Self, String> {
        let mut selection = Selection::default();
        for filter in filters {
            let prefix = filter.to_ascii_lowercase();
            let named = |ty: &&TensorType| ty.name().to_ascii_lowercase().starts_with(&prefix);
            let types: Vec<_> = TensorType::ALL.iter().filter(named).copied().collect();
            if let Ok(part) = Part::from_str(filter, true) {
                selection.parts.push(part);
            } else if let Some(shape) = shape(filter)? {
                selection.shapes.push(shape);
            } else if !types.is_empty() {
                selection.types.extend(types);
            } else {
                return Err(format!("{filter} is no part, tensor type or shape: see --help"));
            }
        }
        Ok(selection)
    }

    /// Whether a part is asked for. The names of types and shapes mean matrices.
    fn part(&self, part: Part) -> bool {
        match self.parts.as_slice() {
            [] if self.types.is_empty() && self.shapes.is_empty() => part != Part::Emulator,
            [] => [Part::Cpu, Part::Gpu].contains(&part),
            parts => parts.contains(&part),
        }
    }

    fn types(&self) -> &[TensorType] {
        if self.types.is_empty() { TensorType::ALL } else { &self.types }
    }

    fn shapes<'a>(&'a self, usual: &'a [Shape]) -> &'a [Shape] {
        if self.shapes.is_empty() { usual } else { &self.shapes }
    }
}

/// `4096x14336`; none if it is no shape.
fn shape(name: &str) -> std::result::Result<Option<Shape>, String> {
    let sides = name.split_once('x').and_then(|(rows, cols)| Some((rows.parse().ok()?, cols.parse().ok()?)));
    let block = TensorType::ALL.iter().map(|ty| ty.block_elems()).max().expect("there are types");
    match sides {
        Some((rows, cols)) if rows == 0 || cols == 0 || cols % block != 0 => {
            Err(format!("{name}: expected a row or more of a multiple of {block} columns"))
        }
        sides => Ok(sides),
    }
}

fn bytes_of(ty: TensorType, (rows, cols): Shape) -> usize {
    rows * ty.row_bytes(cols).expect("columns are whole blocks of every type")
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    let result = Selection::new(&args.filters)
        .and_then(|selection| run(&selection, &mut report).map_err(|e| e.to_string()))
        .and_then(|()| args.json.map_or(Ok(()), |file| report.write(&file)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(selection: &Selection, report: &mut Report) -> Result<()> {
    if selection.part(Part::Cpu) {
        // In the thread pool, as the command line runs.
        rayon::scope(|_| cpu::measure(selection, report))?;
    }
    if selection.part(Part::Emulator) {
        cuda::measure(&cuda::emulator(), (&cuda::TINY, &attention::FEW, 1), selection, report)?;
    }
    if [Part::Gpu, Part::Attention, Part::Boundary, Part::Read].iter().any(|&part| selection.part(part)) {
        match CustDriver::open(0, |line| eprintln!("{line}")) {
            Ok(driver) => {
                let blocks = driver.properties().multiprocessors;
                cuda::measure(&driver, (&cuda::SHAPES, &attention::CONTEXTS, blocks), selection, report)?;
            }
            // Who asked for the GPU by name is told by the exit code.
            Err(DeviceError::Unavailable { why }) if selection.parts.is_empty() => {
                println!("no GPU is measured: {why}");
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
