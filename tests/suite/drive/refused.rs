//! Drives and what is on them that are not the right ones, and what is said of that.

use std::{fs, os::unix::fs::symlink, path::Path, process::Stdio, sync::Arc};

use ::nvme::{
    System,
    model::{Choose, Fault, Media, ModelDoor, Traits},
};
use ntransformer::{engine::DeviceChoice, gguf::Gguf, stream::nvme::DriveChoice};

use super::{BUSY, MEDIA_ERROR, MIB, at_blocks, holding, load, reads};
use crate::{placement::Small, setup, split::Parts};

/// Why a model cannot be streamed from a drive that holds these bytes.
#[track_caller]
fn refused(path: &Path, block: usize, bytes: Vec<u8>, lba: u64) -> String {
    let door = ModelDoor::new(Traits::default(), vec![Arc::new(Media::new(block, bytes))]);
    match load(path, DeviceChoice::Cpu, &reads(&door, lba)) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_not_the_model_is_told_apart() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    let (path, len) = (small.path.to_str().unwrap(), gguf.file_bytes() as usize);
    let check = |bytes: Vec<u8>, lba: u64, expected: &str| {
        let error = refused(&small.path, 512, bytes, lba);
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    };
    let (plain, packed) = (holding(&gguf, 512, 8, false).bytes(), holding(&gguf, 512, 8, true).bytes());

    let advice = format!(
        "`ntransformer nvme write model {path}` lays it there, and --nvme-lba says where it is if it is elsewhere"
    );
    check(vec![0; 2 * MIB], 8, &format!("model: there is no model at block 8, but nothing that is known; {advice}"));
    let mut ext4 = vec![0; 2 * MIB];
    ext4[1080..1082].copy_from_slice(&[0x53, 0xef]);
    check(ext4, 0, "there is no model at block 0, but an ext2, ext3 or ext4 file system;");
    check(plain.clone(), 0, "there is no model at block 0, but nothing that is known;");
    check(packed.clone(), 1 << 40, "there is no block 1099511627776 for a model to begin at");

    // A bit anywhere makes another model of it.
    for place in [100, len / 2, len - 1] {
        let mut bytes = plain.clone();
        bytes[8 * 512 + place] ^= 1;
        let (portion, name) = (place / MIB * MIB, format!("the model at block 8 is not {path}: what is there differs"));
        check(bytes, 8, &name);
        let mut bytes = plain.clone();
        bytes[8 * 512 + place] ^= 1;
        check(bytes, 8, &format!("within 1024 KiB from byte {portion} on;"));
    }
    // The image of another model, of another version, and a damaged one.
    let other = Small::of("Q4_K_M");
    let others = holding(&Gguf::open(&other.path).unwrap(), 512, 8, true).bytes();
    check(
        others,
        8,
        &format!("bytes, and not [{len}]; lay it there (`ntransformer nvme write model {path}`), name the model"),
    );
    let mut bytes = packed.clone();
    bytes[8 * 512 + 8] = 9;
    check(bytes, 8, "the model image at block 8: the image is of version 9");
    let mut bytes = packed.clone();
    bytes[8 * 512 + 40] ^= 1;
    check(bytes, 8, "the model image at block 8: the image's header is damaged (its checksum is wrong)");

    // Drives that end before the model does.
    let cut = |bytes: &[u8]| bytes[..(8 * 512 + len / 2).next_multiple_of(512)].to_vec();
    check(cut(&plain), 8, &format!("a GGUF file begins at block 8, and {path} has {len} bytes, but there are "));
    check(cut(&packed), 8, "the model image at block 8: the image needs ");
    check(plain[..9 * 512].to_vec(), 8, "there is no model at block 8, but ");

    // A split model is never plain.
    let parts = Parts::new(&gguf, &[5]);
    let error = refused(&parts.path(1), 512, plain, 8);
    assert!(error.contains("it is one file, and not 2"), "{error}");
}

/// Faults while the model is looked for and the drive measured: those that pass are not seen, those that stay say where.
#[test]
fn faults_while_a_drive_is_opened() {
    let small = Small::of("Q8_0");
    let media = holding(&Gguf::open(&small.path).unwrap(), 512, 0, true);
    let load_with = |faults: Choose| {
        let door = ModelDoor::new(Traits::default(), vec![media.clone()]);
        door.model().faults(faults);
        load(&small.path, DeviceChoice::Cpu, &reads(&door, 0)).map_err(|error| error.to_string())
    };
    for nth in [0, 1, 5, 30] {
        for fault in [Fault::Status(BUSY), Fault::Missing, Fault::Duplicate(2), Fault::Late(20), Fault::Fatal] {
            let loaded = load_with(Box::new(move |number, _| (number == nth).then_some(fault)));
            assert!(loaded.is_ok(), "{fault:?} of command {nth}: {:?}", loaded.err());
        }
    }
    for (block, command) in [(0, "Read of 8 blocks from block 0 on"), (16, "Read of 256 blocks from block 16 on")] {
        for (fault, message) in [
            (Fault::Status(MEDIA_ERROR), "failed: Unrecovered Read Error"),
            (Fault::Missing, "did not complete within 50ms (4 attempts)"),
            (Fault::Fatal, "did not complete within 50ms (4 attempts)"),
        ] {
            let error = load_with(at_blocks(block..block + 1, fault)).err().expect("it was loaded");
            assert!(error.starts_with(&format!("model: {command} {message}")), "{error}");
        }
    }
}

/// A machine with these functions: addresses, classes and drivers.
fn machine(functions: &[(&str, &str, Option<&str>)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("sys/bus/pci/devices")).unwrap();
    for (address, class, driver) in functions {
        let folder = root.path().join("sys/bus/pci/devices").join(address);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("class"), class).unwrap();
        if let Some(driver) = driver {
            symlink(root.path().join("sys/bus/pci/drivers").join(driver), folder.join("driver")).unwrap();
        }
    }
    root
}

#[test]
fn a_drive_is_found_where_there_is_one() {
    const NVME: &str = "0x010802\n";
    let gpu = ("0000:01:00.0", "0x030200\n", Some("nvidia"));
    let kernels = ("0000:3b:00.0", NVME, Some("nvme"));
    let find = |choice: &str, functions: &[(&str, &str, Option<&str>)]| {
        let root = machine(functions);
        let choice: DriveChoice = choice.parse().unwrap();
        choice.find(&System::at(root.path())).map(|address| address.to_string()).map_err(|error| error.to_string())
    };
    for driver in [None, Some("vfio-pci")] {
        let taken = ("0000:3c:00.0", NVME, driver);
        assert_eq!(find("auto", &[gpu, kernels, taken]).as_deref(), Ok("0000:3c:00.0"));
    }
    let free = ("0000:04:00.0", "0x010601\n", None);
    let error = find("auto", &[gpu, kernels, free]).unwrap_err();
    assert!(error.starts_with("no NVMe drive is taken from the kernel (0000:3b:00.0 has the driver nvme);"), "{error}");
    assert!(error.ends_with("`nvme bind BDF` takes one"), "{error}");
    assert!(find("auto", &[gpu]).unwrap_err().contains("(there are none)"));
    let two = [("0000:3c:00.0", NVME, None), ("0000:3d:00.0", NVME, Some("vfio-pci"))];
    let error = find("auto", &two).unwrap_err();
    assert!(
        error.contains("0000:3c:00.0, 0000:3d:00.0; say which one is meant (--nvme BDF, or GPUNVME_PCI_BDF)"),
        "{error}"
    );
    assert_eq!(find("3d:00.0", &two).as_deref(), Ok("0000:3d:00.0"));
    // What the kernel's driver has is refused when it is opened, with what to do.
    assert_eq!(find("3b:00.0", &[kernels]).as_deref(), Ok("0000:3b:00.0"));
    let error = find("01:00.0", &[gpu]).unwrap_err();
    assert!(error.starts_with("0000:01:00.0 is no NVMe drive (its class is 030200)"), "{error}");
    assert!(find("05:00.0", &[gpu]).unwrap_err().contains("there is no such device"));
}

#[test]
fn the_command_says_what_is_wrong_with_a_drive() {
    let demo = setup::root().join("assets/demo.gguf");
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        let common = ["-c", "64", "-n", "2", "-t", "0", "-p", "Once", "--device", "cpu", "--ram-budget", "0"];
        let mut command = std::process::Command::new(setup::ntransformer());
        command.args(common).args(["-m", demo.to_str().unwrap()]).args(args);
        let output = command.envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (none, tight) = ("ffff:ff:1f.7", "--vram-budget=7MiB");
    let (drive, lba, gpu) = ("GPUNVME_PCI_BDF", "GPUNVME_GGUF_LBA", "GPUNVME_GPU_BDF");
    for (args, variables, code, expected) in [
        (&["--streaming", tight, "--nvme", none][..], &[][..], 1, "ffff:ff:1f.7: there is no such device (see lspci)"),
        (&["--streaming", tight], &[(drive, none)], 1, "ffff:ff:1f.7: there is no such device (see lspci)"),
        (&["--streaming", tight, "--plan"], &[(drive, none)], 1, "ffff:ff:1f.7: there is no such device (see lspci)"),
        (&["--streaming"], &[(drive, "nvme0")], 1, "GPUNVME_PCI_BDF is \"nvme0\": expected auto, or a PCI address"),
        (&["--streaming"], &[(lba, "one")], 1, "GPUNVME_GGUF_LBA is \"one\": expected the number of a logical block"),
        (&["--streaming"], &[(gpu, "cuda:0")], 1, "GPUNVME_GPU_BDF is \"cuda:0\": expected a PCI address"),
        (
            &["--streaming", "--nvme-lba", "8"],
            &[],
            1,
            "--nvme-lba says more of a drive that is read, but none is chosen",
        ),
        (&["--streaming", "--nvme-namespace", "2"], &[], 1, "--nvme-namespace says more of a drive that is read"),
        (&["--streaming", "--nvme-namespace", "0"], &[], 2, "--nvme-namespace"),
        (
            &["--streaming"],
            &[("GPUNVME_NAMESPACE", "0")],
            1,
            "GPUNVME_NAMESPACE is \"0\": expected the number of a namespace",
        ),
        (&["--streaming", "--nvme", "nvme0"], &[], 2, "expected auto, or a PCI address such as 0000:3b:00.0"),
        (&["--nvme", none], &[], 2, "--streaming"),
        // What is not streamed needs no drive.
        (&[], &[(drive, none)], 0, ""),
        (&["--streaming"], &[(drive, none)], 0, "nothing to stream"),
        (&["--streaming", tight], &[], 0, "what is on disk is read by "),
    ] {
        let (found, error) = run(args, variables);
        assert!(found == Some(code) && error.contains(expected), "{args:?} {variables:?}: {found:?} {error}");
    }
}
