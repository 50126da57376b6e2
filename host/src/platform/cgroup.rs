//! The memory that the process's control groups allow (cgroups, versions 1 and 2): containers and job schedulers set less than
//! the machine has, and what goes beyond it is killed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use procfs::{
    FromRead, ProcessCGroups,
    process::{MountInfo, MountInfos},
};

use crate::device::MemoryInfo;

/// The least memory that a group of this process still allows, and its limit. None where no group limits it.
pub(super) fn memory() -> Option<MemoryInfo> {
    let groups = ProcessCGroups::from_file("/proc/self/cgroup").ok()?;
    let mounts = MountInfos::from_file("/proc/self/mountinfo").ok()?;
    least(&groups, &mounts)
}

fn least(groups: &ProcessCGroups, mounts: &MountInfos) -> Option<MemoryInfo> {
    let folders = mounts.0.iter().filter_map(|mount| {
        let version = Version::of(mount)?;
        // Version 2 has one hierarchy, without names of controllers.
        let group = groups.0.iter().find(|group| match version {
            Version::V1 => group.controllers.iter().any(|name| name == "memory"),
            Version::V2 => group.hierarchy == 0,
        })?;
        Some((version, mount, &group.pathname))
    });
    let limits = folders.flat_map(|(version, mount, path)| {
        let top = &mount.mount_point;
        let folder = folder(mount, path);
        let levels: Vec<PathBuf> =
            folder.ancestors().take_while(|level| level.starts_with(top)).map(Path::to_owned).collect();
        levels.into_iter().filter_map(move |level| version.read(&level))
    });
    limits.min_by_key(|limit| limit.free)
}

/// Where the group `path` is found under `mount`; the mount itself where the group is outside of it, as in a container that sees
/// no more than its own group.
fn folder(mount: &MountInfo, path: &str) -> PathBuf {
    let inside = Path::new(path)
        .strip_prefix(&mount.root)
        .ok()
        .filter(|inside| inside.components().all(|part| matches!(part, std::path::Component::Normal(_))));
    let folder = mount.mount_point.join(inside.unwrap_or(Path::new("")));
    if folder.is_dir() { folder } else { mount.mount_point.clone() }
}

#[derive(Clone, Copy)]
enum Version {
    V1,
    V2,
}

impl Version {
    /// The version of a mounted hierarchy that may limit memory.
    fn of(mount: &MountInfo) -> Option<Version> {
        match mount.fs_type.as_str() {
            "cgroup2" => Some(Version::V2),
            "cgroup" if mount.super_options.contains_key("memory") => Some(Version::V1),
            _ => None,
        }
    }

    /// The limit of the group in `folder` and what is left of it. Its page cache counts as free: the kernel drops it first.
    fn read(self, folder: &Path) -> Option<MemoryInfo> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let (limits, used, prefix) = match self {
            Version::V1 => (&["memory.limit_in_bytes"][..], "memory.usage_in_bytes", "total_"),
            Version::V2 => (&["memory.max", "memory.high"][..], "memory.current", ""),
        };
        // No limit is the word `max`, or a number beyond any machine's memory.
        let total = limits.iter().filter_map(|name| number(name)).min()?;
        let stat = read("memory.stat").unwrap_or_default();
        let cache: u64 = ["active_file", "inactive_file"]
            .iter()
            .filter_map(|name| {
                let line = |line: &str| line.strip_prefix(prefix)?.strip_prefix(name)?.trim().parse::<u64>().ok();
                stat.lines().find_map(line)
            })
            .sum();
        let taken = number(used)?.saturating_sub(cache);
        Some(MemoryInfo { free: total.saturating_sub(taken), total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine's files.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            Tree(tempfile::tempdir().unwrap())
        }

        fn file(&self, path: &str, text: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        /// What is found with these lines of /proc/self/cgroup and, for each mount, its root, place, type and options.
        fn least(&self, groups: &str, mounts: &[(&str, &str, &str, &str)]) -> Option<(u64, u64)> {
            let line = |&(root, place, ty, options): &(&str, &str, &str, &str)| {
                format!("30 23 0:26 {root} {}/{place} rw,relatime - {ty} none {options}\n", self.0.path().display())
            };
            let mounts: String = mounts.iter().map(line).collect();
            let groups = ProcessCGroups::from_read(groups.as_bytes()).unwrap();
            let mounts = MountInfos::from_read(mounts.as_bytes()).unwrap();
            super::least(&groups, &mounts).map(|found| (found.free, found.total))
        }
    }

    const V2: (&str, &str, &str, &str) = ("/", "cg", "cgroup2", "rw");
    const V1: (&str, &str, &str, &str) = ("/", "mem", "cgroup", "rw,memory");

    #[test]
    fn version_2() {
        let tree = Tree::new();
        tree.file("cg/job/step/memory.max", "max\n").file("cg/job/step/memory.current", "70\n");
        assert_eq!(tree.least("0::/job/step\n", &[V2]), None, "no limit is none");
        // The group above it has one, and page cache is as good as free.
        tree.file("cg/job/memory.max", "1000\n").file("cg/job/memory.current", "700\n");
        tree.file("cg/job/memory.stat", "anon 400\nfile 300\ninactive_file 200\nactive_file 90\n");
        assert_eq!(tree.least("0::/job/step\n", &[V2]), Some((590, 1000)));
        // A tighter one below, and one that slows down before it kills.
        tree.file("cg/job/step/memory.max", "500\n").file("cg/job/step/memory.high", "400\n");
        assert_eq!(tree.least("0::/job/step\n", &[V2]), Some((330, 400)));
        // More is in use than is allowed.
        tree.file("cg/job/step/memory.current", "900\n");
        assert_eq!(tree.least("0::/job/step\n", &[V2]), Some((0, 400)));
    }

    #[test]
    fn version_1() {
        let tree = Tree::new();
        tree.file("mem/memory.limit_in_bytes", "9223372036854771712\n").file("mem/memory.usage_in_bytes", "800\n");
        tree.file("mem/job/memory.limit_in_bytes", "1000\n").file("mem/job/memory.usage_in_bytes", "800\n");
        tree.file("mem/job/memory.stat", "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 50\n");
        let groups = "4:memory:/job\n3:cpu,cpuacct:/other\n0::/\n";
        assert_eq!(tree.least(groups, &[V1]), Some((350, 1000)));
        // Both versions side by side, and mounts that have nothing to do with memory.
        tree.file("cg/cgroup.procs", "1\n").file("cpu/other/x", "");
        assert_eq!(tree.least(groups, &[("/", "cpu", "cgroup", "rw,cpu"), V2, V1]), Some((350, 1000)));
    }

    /// A container's mount shows its own group only, whatever the path in /proc/self/cgroup begins with.
    #[test]
    fn containers() {
        let tree = Tree::new();
        tree.file("cg/memory.max", "1000\n").file("cg/memory.current", "1\n");
        assert_eq!(tree.least("0::/docker/abc\n", &[("/docker/abc", "cg", "cgroup2", "rw")]), Some((999, 1000)));
        assert_eq!(tree.least("0::/docker/abc\n", &[V2]), Some((999, 1000)), "a folder that is not there");
        assert_eq!(tree.least("0::/../other\n", &[V2]), Some((999, 1000)), "a group outside of the mount");
        assert_eq!(tree.least("", &[V2]), None);
        assert_eq!(tree.least("0::/\n", &[]), None);
    }
}
