//! `ntransformer nvme`: models on raw drives, which a controller model plays, and what the command says of machines of files.

use ::nvme::{
    Door, System,
    model::{Media, ModelDoor, Traits},
};
use ntransformer::{
    cli::nvme::{
        bench, list,
        storage::{BlockDevice, DirectDrive, Storage, Target},
        write::{Verified, verify, write},
    },
    gguf::Gguf,
    pack::raw::Layout,
};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use crate::setup;

const MIB: usize = 1 << 20;

/// A model of some 20 MiB: two chunks, the second not whole.
fn model(folder: &Path) -> Gguf {
    let demo = fs::read(setup::root().join("assets/demo.gguf")).unwrap();
    let mut bytes = demo.clone();
    // What is behind the tensors is the file's, too.
    (0u32..)
        .map(|i| i.wrapping_mul(0x9e37_79b9))
        .take((21 * MIB - demo.len()) / 4 + 1)
        .for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes.push(7);
    let path = folder.join("model.gguf");
    fs::write(&path, bytes).unwrap();
    Gguf::open(&path).unwrap()
}

/// A drive of zeros that is played, and its bytes.
fn played(block: usize, bytes: usize) -> (Arc<Media>, Box<dyn Storage>) {
    let media = Arc::new(Media::new(block, vec![0; bytes]));
    let door = ModelDoor::new(Traits { shuffle: Some(1), ..Traits::default() }, vec![media.clone()]);
    (media, Box::new(DirectDrive::open(door, None).unwrap()))
}

/// The drive with these bytes.
fn holding(block: usize, bytes: Vec<u8>) -> Box<dyn Storage> {
    let door = ModelDoor::new(Traits::default(), vec![Arc::new(Media::new(block, bytes))]);
    Box::new(DirectDrive::open(door, None).unwrap())
}

fn check(storage: &mut dyn Storage, start: u64, gguf: Option<&Gguf>) -> Result<Verified, String> {
    verify(storage, start, gguf, &mut |_, _| ()).map_err(|error| format!("{error:#}"))
}

#[test]
fn models_are_written_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = model(folder.path());
    for (block, start) in [(512, 512 * 3), (4096, 0)] {
        let (media, mut drive) = played(block, 32 * MIB);
        let mut told = Vec::new();
        let layout = write(&mut *drive, start, &gguf, &mut |done| told.push(done)).unwrap();
        assert_eq!(told, [16 << 20, gguf.file_bytes()]);
        let good = Verified { bytes: gguf.file_bytes(), what: "a packed image" };
        assert_eq!(check(&mut *drive, start, None), Ok(good.clone()));
        assert_eq!(check(&mut *drive, start, Some(&gguf)), Ok(good));
        drive.close().unwrap();

        // The file is there as it is, and nothing is in front of the image and behind it.
        let bytes = media.bytes();
        let (file, image) = (layout.files()[0], start as usize..(start + layout.bytes()) as usize);
        let begin = (start + file.start) as usize;
        assert!(bytes[begin..begin + file.len as usize] == *gguf.parts()[0].bytes());
        assert!(bytes[..image.start].iter().chain(&bytes[image.end..]).all(|&byte| byte == 0));

        // A bit anywhere in what was written is noticed.
        let places = [start, start + 4096, start + file.start, start + file.start + file.len - 1];
        for (place, expected) in
            places.into_iter().zip(["no model image", "checksums", "of file 1 are damaged", "of file 1 are damaged"])
        {
            let mut bytes = bytes.clone();
            bytes[place as usize] ^= 1;
            let error = check(&mut *holding(block, bytes), start, None).unwrap_err();
            assert!(error.contains(expected), "{place}: {error}");
        }
    }
}

#[test]
fn a_write_that_fails_leaves_no_image() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = model(folder.path());
    let (_, mut drive) = played(512, 32 * MIB);
    write(&mut *drive, 0, &gguf, &mut |_| ()).unwrap();
    fs::OpenOptions::new().write(true).open(folder.path().join("model.gguf")).unwrap().set_len(18 << 20).unwrap();
    let error = format!("{:#}", write(&mut *drive, 0, &gguf, &mut |_| ()).unwrap_err());
    assert!(error.contains("model.gguf cannot be read"), "{error}");
    assert!(check(&mut *drive, 0, None).unwrap_err().contains("no model image"));
}

#[test]
fn drives_that_are_too_small() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = model(folder.path());
    let (media, mut drive) = played(512, 21 * MIB);
    let error = write(&mut *drive, 0, &gguf, &mut |_| ()).unwrap_err().to_string();
    assert!(error.starts_with("the image needs ") && error.ends_with("and there are 22020096"), "{error}");
    assert!(media.bytes().iter().all(|&byte| byte == 0), "nothing was written");
}

#[test]
fn drives_with_large_blocks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = model(folder.path());
    let (_, mut drive) = played(8192, 32 * MIB);
    let expected = "drives with blocks of 8192 bytes are not supported; format it with blocks of 512 or 4096";
    assert_eq!(write(&mut *drive, 0, &gguf, &mut |_| ()).unwrap_err().to_string(), expected);
    assert_eq!(check(&mut *drive, 0, Some(&gguf)).unwrap_err(), expected);
}

#[test]
fn plain_files_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = model(folder.path());
    let (start, file) = (8192, gguf.parts()[0].bytes());
    let mut bytes = vec![0; 24 * MIB];
    bytes[start..start + file.len()].copy_from_slice(file);
    let mut drive = holding(4096, bytes.clone());
    let error = check(&mut *drive, start as u64, None).unwrap_err();
    assert!(error.contains("a plain GGUF file, which has no checksums"), "{error}");
    let good = Verified { bytes: file.len() as u64, what: "a plain GGUF file" };
    assert_eq!(check(&mut *drive, start as u64, Some(&gguf)), Ok(good));
    bytes[start + 17 * MIB] ^= 1;
    let error = check(&mut *holding(4096, bytes), start as u64, Some(&gguf)).unwrap_err();
    assert!(error.contains("bytes 16777216 to ") && error.contains("differ from"), "{error}");
    // Another model's image.
    let other = Gguf::open(&setup::root().join("assets/demo.gguf")).unwrap();
    let (_, mut drive) = played(512, 32 * MIB);
    write(&mut *drive, 0, &other, &mut |_| ()).unwrap();
    let error = check(&mut *drive, 0, Some(&gguf)).unwrap_err();
    assert!(error.contains("another model is there"), "{error}");
}

/// A machine with a drive that the kernel's driver has; its namespace is a file of 32 MiB.
fn machine() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let file = |path: &str, bytes: &[u8]| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let device = "sys/devices/pci0000:00/0000:3b:00.0";
    file(&format!("{device}/class"), b"0x010802\n");
    file(&format!("{device}/nvme/nvme0/model"), b"Disk\n");
    file(&format!("{device}/nvme/nvme0/serial"), b"S1   \n");
    file(&format!("{device}/nvme/nvme0/nvme0n1/dev"), b"259:0\n");
    file(&format!("{device}/nvme/nvme0/nvme0n1/size"), b"65536\n");
    file(&format!("{device}/nvme/nvme0/nvme0n1/nsid"), b"3\n");
    file(&format!("{device}/nvme/nvme0/nvme0n1/queue/logical_block_size"), b"512\n");
    file("dev/nvme0n1", &vec![0; 32 * MIB]);
    file("proc/self/mountinfo", b"");
    file("sys/bus/pci/drivers/nvme/uevent", b"");
    let link = |to: &str, at: &str| {
        let at = root.path().join(at);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(root.path().join(to), at).unwrap();
    };
    link(device, "sys/bus/pci/devices/0000:3b:00.0");
    link("sys/bus/pci/drivers/nvme", &format!("{device}/driver"));
    link(&format!("{device}/nvme/nvme0/nvme0n1"), "sys/class/block/nvme0n1");
    root
}

#[test]
fn drives_are_named_by_address_or_device() {
    let (root, folder) = (machine(), tempfile::tempdir().unwrap());
    let (system, gguf) = (System::at(root.path()), model(folder.path()));
    let device = root.path().join("dev/nvme0n1");
    for (name, namespace) in [("0000:3b:00.0", None), ("3b:00.0", Some(3)), (device.to_str().unwrap(), None)] {
        let mut target = Target::open(&system, name, namespace).unwrap();
        assert_eq!(target.serial, "S1");
        assert_eq!(target.start(7).unwrap(), 7 * 512);
        assert!(target.start(65536).unwrap_err().to_string().ends_with("has 65536 blocks: there is no block 65536"));
        write(&mut *target.storage, 512, &gguf, &mut |_| ()).unwrap();
        assert!(check(&mut *target.storage, 512, Some(&gguf)).is_ok());
        target.close().unwrap();
    }
    let refuse_with = |name: &str, namespace| match Target::open(&system, name, namespace) {
        Ok(_) => panic!("{name} was opened"),
        Err(error) => format!("{error:#}"),
    };
    let refuse = |name: &str| refuse_with(name, None);
    // A block device's name has a number of its own.
    assert!(refuse_with("0000:3b:00.0", Some(1)).contains("name one of its block devices instead: /dev/nvme0n1"));
    assert!(refuse_with(device.to_str().unwrap(), Some(3)).contains("--namespace goes with a PCI address"));
    assert!(refuse("0000:3c:00.0").contains("there is no such device"));
    assert!(refuse("/dev/nvme9n9").contains("is neither a PCI address nor a device that there is"));
    assert!(refuse(root.path().join("proc/self/mountinfo").to_str().unwrap()).contains("is no block device"));
    fs::write(root.path().join("proc/self/mountinfo"), "31 1 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n").unwrap();
    let expected = "0000:3b:00.0: the drive is in use: nvme0n1 is mounted at /data";
    assert_eq!(refuse(device.to_str().unwrap()), expected);
    assert_eq!(refuse("0000:3b:00.0"), expected);
}

#[test]
fn what_is_on_drives_is_listed() {
    let (root, folder) = (machine(), tempfile::tempdir().unwrap());
    let system = System::at(root.path());
    let listed = || {
        let mut out = Vec::new();
        list::print(&system, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let expected = "0000:3b:00.0  Disk, serial number S1\n  driver: nvme\n  IOMMU:  none\n  link:   unknown\n  \
                    nvme0n1: namespace 3, 32.0 MiB, nothing that is known\n";
    assert_eq!(listed(), expected);
    let mut device = BlockDevice::open(&root.path().join("dev/nvme0n1"), 32 << 20).unwrap();
    device.write(0, b"GGUF").unwrap();
    assert!(listed().ends_with("nvme0n1: namespace 3, 32.0 MiB, a GGUF model\n"));
    write(&mut device, 0, &model(folder.path()), &mut |_| ()).unwrap();
    fs::write(root.path().join("proc/swaps"), "/dev/nvme0n1 partition 1 0 -2\n").unwrap();
    let expected = "nvme0n1: namespace 3, 32.0 MiB, a packed model image\n    in use: nvme0n1 is swapped to\n";
    assert!(listed().ends_with(expected), "{}", listed());
}

#[test]
fn a_drive_is_measured() {
    let door: Arc<dyn Door> = ModelDoor::new(Traits::default(), vec![Arc::new(Media::new(512, vec![0; 4 * MIB]))]);
    let options = |sizes: &[u64]| bench::Options {
        namespace: None,
        depths: vec![1, 8],
        sizes: sizes.to_vec(),
        time: Duration::from_millis(20),
    };
    let mut out = Vec::new();
    bench::print(&door, &options(&[4096, 1 << 20]), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().skip(3).map(|line| line.split('|').map(str::trim).collect()).collect();
    assert_eq!(
        rows.iter().map(|row| (row[1], row[2])).collect::<Vec<_>>(),
        [("4.0 KiB", "1"), ("4.0 KiB", "8"), ("1.0 MiB", "1"), ("1.0 MiB", "8")]
    );
    // The model completes what is in flight in each step of 100 us: so many reads are eight times as many.
    let rate = |row: usize| rows[row][3].parse::<f64>().unwrap();
    assert!((7.0..9.0).contains(&(rate(1) / rate(0))), "{text}");
    let error = bench::print(&door, &options(&[1000]), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("reads of 1000 bytes: this drive takes multiples of 512"), "{error}");
}

/// Which of several namespaces is meant has to be said.
#[test]
fn namespaces_are_not_guessed() {
    let media = || [512, 4096].map(|block| Arc::new(Media::new(block, vec![0; MIB]))).to_vec();
    let open = |media, id| match DirectDrive::open(ModelDoor::new(Traits::default(), media), id) {
        Ok(drive) => Ok(drive.block_bytes()),
        Err(error) => Err(error.to_string()),
    };
    assert_eq!((open(media(), Some(1)), open(media(), Some(2))), (Ok(512), Ok(4096)));
    assert_eq!(
        open(media(), None).unwrap_err(),
        "model has the namespaces [1, 2]; say which one is meant (--namespace)"
    );
    assert_eq!(open(vec![], None).unwrap_err(), "model has no namespaces");
}

/// An image's layout is what the format's description says, so that images outlive the program that made them.
#[test]
fn the_format_does_not_change() {
    let layout = Layout::new(&[5, 20 << 20]).unwrap();
    let (header, table) = layout.encode(&[1, 2, 3]);
    assert_eq!(&header[..24], b"NTIMAGE\0\x01\0\0\0\x02\0\0\0\0\0\0\x01\0\0\0\0");
    assert_eq!((table.len(), &table[..24]), (4096, &[1u64, 2, 3].map(u64::to_le_bytes).concat()[..]));
    assert_eq!(layout.files().iter().map(|file| file.start).collect::<Vec<_>>(), [8192, 12288]);
}

#[test]
fn the_command_refuses_what_is_no_drive() {
    let run = |args: &[&str]| {
        let output = Command::new(setup::ntransformer()).arg("nvme").args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let demo = setup::root().join("assets/demo.gguf");
    let demo = demo.to_str().unwrap();
    for (args, expected) in [
        (&["bind", "ffff:ff:1f.7"][..], "ffff:ff:1f.7: there is no such device (see lspci)"),
        (&["unbind", "ffff:ff:1f.7"], "there is no such device"),
        (&["bench", "ffff:ff:1f.7"], "there is no such device"),
        (&["write", "ffff:ff:1f.7", demo], "there is no such device"),
        (&["verify", "/dev/null"], "/dev/null is no block device"),
        (&["write", demo, demo], "demo.gguf is no block device"),
        (&["write", "/dev/null", "/nonexistent"], "/nonexistent"),
    ] {
        let (code, error) = run(args);
        assert!(code == Some(1) && error.contains(expected), "{args:?}: {error}");
    }
    let (code, error) = run(&["bind", "sda"]);
    assert!(code == Some(2) && error.contains("\"sda\" is no PCI address"), "{error}");
}
