//! Which of a drive's namespaces the model is on.

use nvme::{Controller, Drive};
use readahead::Input;

use super::{NvmeError, OnDrive, Opened};

/// Where on a drive a model is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// The namespace. None: the one that holds the model.
    pub namespace: Option<u32>,
    /// The logical block that it begins at.
    pub lba: u64,
}

impl Spot {
    /// Finds the model whose files are `files`, as [`OnDrive::find`] does.
    ///
    /// # Errors
    /// If it is not there. Of several namespaces, what each of them holds.
    pub(super) fn find(self, mut controller: Controller, files: &[Input]) -> Result<Opened, NvmeError> {
        let device = controller.name().to_owned();
        let ids = self.namespace.map_or_else(|| controller.namespaces(), |id| Ok(vec![id]))?;
        if let [id] = ids[..] {
            let mut drive = Drive::open(controller, id)?;
            let image = OnDrive::find(&mut drive, self.lba, files)?;
            return Ok(Opened { drive, image: image.into() });
        }
        let model = files.first().map(|file| file.path.clone()).unwrap_or_default();
        let (mut readable, mut held) = (Vec::new(), Vec::new());
        for id in ids {
            match controller.namespace(id) {
                Ok(_) => readable.push(id),
                Err(nvme::Error::Refused { reason, .. }) => held.push((id, reason)),
                Err(error) => return Err(error.into()),
            }
        }
        let Some(&first) = readable.first() else {
            return Err(NvmeError::NoNamespace { device, held: Held(held) });
        };
        let mut drive = Drive::open(controller, first)?;
        let mut found = Vec::new();
        for id in readable {
            drive.select(id)?;
            match OnDrive::find(&mut drive, self.lba, files) {
                Ok(image) => {
                    held.push((id, "this model".into()));
                    found.push((id, image));
                }
                Err(error) => held.push((id, error.held()?)),
            }
        }
        held.sort_unstable();
        match <[_; 1]>::try_from(found) {
            Ok([(id, image)]) => {
                drive.select(id)?;
                Ok(Opened { drive, image: image.into() })
            }
            Err(found) if found.is_empty() => {
                Err(NvmeError::OnNoNamespace { device, lba: self.lba, held: Held(held), model })
            }
            Err(_) => Err(NvmeError::OnSeveralNamespaces { device, lba: self.lba, held: Held(held), model }),
        }
    }
}

/// What namespaces hold, for messages.
#[derive(Debug)]
pub struct Held(pub Vec<(u32, String)>);

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (id, what)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "; " } else { "" };
            write!(f, "{comma}namespace {id}: {what}")?;
        }
        Ok(())
    }
}
