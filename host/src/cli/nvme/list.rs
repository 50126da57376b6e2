//! `ntransformer nvme list`.

use bytesize::ByteSize;
use nvme::{Link, PciDevice, System};
use std::io::Write;

use crate::pack::raw;

/// Prints the drives of a machine.
///
/// # Errors
/// If it has no PCI bus, or the output cannot be written.
pub fn print(system: &System, out: &mut dyn Write) -> anyhow::Result<()> {
    let drives = system.drives()?;
    if drives.is_empty() {
        writeln!(out, "this machine has no NVMe drives")?;
    }
    for drive in &drives {
        let model = drive.model.as_deref().unwrap_or("NVMe drive");
        let serial = drive.serial.as_deref().map_or(String::new(), |serial| format!(", serial number {serial}"));
        writeln!(out, "{}  {model}{serial}", drive.address)?;
        writeln!(out, "  driver: {}", drive.driver.as_deref().unwrap_or("none"))?;
        writeln!(out, "  IOMMU:  {}", group(drive))?;
        writeln!(out, "  link:   {}", link(drive))?;
        if drive.blocks.is_empty() {
            writeln!(out, "  what is on it is seen while the driver nvme has it")?;
        }
        for block in &drive.blocks {
            let size = system.block_bytes(block).map_or("unknown size".into(), |bytes| ByteSize(bytes).to_string());
            let contents: Vec<_> =
                system.block_contents(block, raw::KNOWN).into_iter().map(|content| content.name).collect();
            let contents = if contents.is_empty() { "nothing that is known".into() } else { contents.join(", ") };
            let id = system.namespace_of_block(block).map_or(String::new(), |id| format!("namespace {id}, "));
            writeln!(out, "  {block}: {id}{size}, {contents}")?;
            for reason in system.uses(block) {
                writeln!(out, "    in use: {reason}")?;
            }
        }
    }
    Ok(())
}

fn group(drive: &PciDevice) -> String {
    let Some(group) = &drive.group else { return "none".into() };
    let kind = group.kind.as_deref().unwrap_or("unknown kind");
    match group.devices.len() {
        0 | 1 => format!("group {} ({kind})", group.id),
        count => format!("group {} ({kind}), with {} other devices", group.id, count - 1),
    }
}

fn link(drive: &PciDevice) -> String {
    let show = |link: &Link| format!("{} x{}", link.speed, link.width);
    match (&drive.link, &drive.max_link) {
        (Some(now), Some(most)) if now != most => format!("{}, {} at most", show(now), show(most)),
        (Some(now), _) => show(now),
        (None, _) => "unknown".into(),
    }
}
