//! Status of a completed command: NVM Express Base Specification 2.0, section 3.3.3.2.1 ("Status Field Definition"), and for reads
//! and writes the NVM Command Set Specification 1.0, section 3.1.1.

use std::fmt;

/// The status field of a completion, without its phase bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// No error.
    pub const SUCCESS: Status = Status(0);

    /// The status with this type and code; `again`: the same command may succeed if it is submitted again.
    pub const fn new(code_type: u8, code: u8, again: bool) -> Status {
        Status(code as u16 | (code_type as u16 & 7) << 8 | (!again as u16) << 14)
    }

    /// Status Code Type (SCT).
    pub fn code_type(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// Status Code (SC).
    pub fn code(self) -> u8 {
        self.0 as u8
    }

    /// Whether the command did what it should.
    pub fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Whether the controller says that trying again is of no use (DNR).
    pub fn do_not_retry(self) -> bool {
        self.0 >> 14 & 1 == 1
    }

    /// Whether the command ended because it was aborted or its queue was deleted.
    pub fn is_aborted(self) -> bool {
        matches!((self.code_type(), self.code()), (0, 0x07 | 0x08) | (3, 0x71))
    }

    /// What the specification calls it. None where it has no name for it: vendors have their own.
    pub fn name(self) -> Option<&'static str> {
        let table: &[(u8, &str)] = match self.code_type() {
            0 => GENERIC,
            1 => COMMAND_SPECIFIC,
            2 => MEDIA,
            3 => PATH,
            _ => return None,
        };
        table.iter().find(|&&(code, _)| code == self.code()).map(|&(_, name)| name)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.code_type() {
            0 => "generic",
            1 => "command specific",
            2 => "media and data integrity",
            3 => "path related",
            7 => "vendor specific",
            _ => "reserved",
        };
        let name = self.name().unwrap_or("a status without a name");
        write!(f, "{name} ({kind}, type {:X}h code {:02X}h", self.code_type(), self.code())?;
        f.write_str(if self.do_not_retry() { ", not to be tried again)" } else { ")" })
    }
}

/// Generic Command Status.
const GENERIC: &[(u8, &str)] = &[
    (0x00, "Successful Completion"),
    (0x01, "Invalid Command Opcode"),
    (0x02, "Invalid Field in Command"),
    (0x03, "Command ID Conflict"),
    (0x04, "Data Transfer Error"),
    (0x05, "Commands Aborted due to Power Loss Notification"),
    (0x06, "Internal Error"),
    (0x07, "Command Abort Requested"),
    (0x08, "Command Aborted due to SQ Deletion"),
    (0x09, "Command Aborted due to Failed Fused Command"),
    (0x0a, "Command Aborted due to Missing Fused Command"),
    (0x0b, "Invalid Namespace or Format"),
    (0x0c, "Command Sequence Error"),
    (0x0d, "Invalid SGL Segment Descriptor"),
    (0x0e, "Invalid Number of SGL Descriptors"),
    (0x0f, "Data SGL Length Invalid"),
    (0x10, "Metadata SGL Length Invalid"),
    (0x11, "SGL Descriptor Type Invalid"),
    (0x12, "Invalid Use of Controller Memory Buffer"),
    (0x13, "PRP Offset Invalid"),
    (0x14, "Atomic Write Unit Exceeded"),
    (0x15, "Operation Denied"),
    (0x16, "SGL Offset Invalid"),
    (0x18, "Host Identifier Inconsistent Format"),
    (0x19, "Keep Alive Timer Expired"),
    (0x1a, "Keep Alive Timeout Invalid"),
    (0x1b, "Command Aborted due to Preempt and Abort"),
    (0x1c, "Sanitize Failed"),
    (0x1d, "Sanitize In Progress"),
    (0x1e, "SGL Data Block Granularity Invalid"),
    (0x1f, "Command Not Supported for Queue in CMB"),
    (0x20, "Namespace is Write Protected"),
    (0x21, "Command Interrupted"),
    (0x22, "Transient Transport Error"),
    (0x23, "Command Prohibited by Command and Feature Lockdown"),
    (0x24, "Admin Command Media Not Ready"),
    (0x80, "LBA Out of Range"),
    (0x81, "Capacity Exceeded"),
    (0x82, "Namespace Not Ready"),
    (0x83, "Reservation Conflict"),
    (0x84, "Format In Progress"),
];

/// Command Specific Status, of the commands that this driver sends.
const COMMAND_SPECIFIC: &[(u8, &str)] = &[
    (0x00, "Completion Queue Invalid"),
    (0x01, "Invalid Queue Identifier"),
    (0x02, "Invalid Queue Size"),
    (0x03, "Abort Command Limit Exceeded"),
    (0x08, "Invalid Interrupt Vector"),
    (0x0c, "Invalid Queue Deletion"),
    (0x0d, "Feature Identifier Not Saveable"),
    (0x0e, "Feature Not Changeable"),
    (0x0f, "Feature Not Namespace Specific"),
    (0x80, "Conflicting Attributes"),
    (0x81, "Invalid Protection Information"),
    (0x82, "Attempted Write to Read Only Range"),
    (0x83, "Command Size Limit Exceeded"),
];

/// Media and Data Integrity Errors.
const MEDIA: &[(u8, &str)] = &[
    (0x80, "Write Fault"),
    (0x81, "Unrecovered Read Error"),
    (0x82, "End-to-end Guard Check Error"),
    (0x83, "End-to-end Application Tag Check Error"),
    (0x84, "End-to-end Reference Tag Check Error"),
    (0x85, "Compare Failure"),
    (0x86, "Access Denied"),
    (0x87, "Deallocated or Unwritten Logical Block"),
    (0x88, "End-to-End Storage Tag Check Error"),
];

/// Path Related Status.
const PATH: &[(u8, &str)] = &[
    (0x00, "Internal Path Error"),
    (0x01, "Asymmetric Access Persistent Loss"),
    (0x02, "Asymmetric Access Inaccessible"),
    (0x03, "Asymmetric Access Transition"),
    (0x60, "Controller Pathing Error"),
    (0x70, "Host Pathing Error"),
    (0x71, "Command Aborted By Host"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_their_names() {
        assert!(Status::SUCCESS.is_success());
        let media = Status(0x4281);
        assert!(!media.is_success() && media.do_not_retry());
        assert_eq!(
            media.to_string(),
            "Unrecovered Read Error (media and data integrity, type 2h code 81h, not to be tried again)"
        );
        assert_eq!(Status::new(0, 0x80, true).to_string(), "LBA Out of Range (generic, type 0h code 80h)");
        assert_eq!(Status(0x07c1).to_string(), "a status without a name (vendor specific, type 7h code C1h)");
        assert!(Status(0x0007).is_aborted() && Status(0x0371).is_aborted() && !Status(0x0107).is_aborted());
        // More (M) is no error.
        assert!(Status(0x2000).is_success());
        assert_eq!(Status::new(2, 0x81, false), media);
    }

    #[test]
    fn tables_are_in_order() {
        for table in [GENERIC, COMMAND_SPECIFIC, MEDIA, PATH] {
            assert!(table.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
}
