//! Sources on top of others.

/// The methods of a [`Source`](crate::Source) that the source in it answers: `forward!(self => self.inner; depth, name)`. A new method of the
/// trait that has a default gets a line here, and one in each list.
#[macro_export]
macro_rules! forward {
    ($self:ident => $inner:expr; $($method:ident),+) => { $($crate::forward!(@$method, $self, $inner);)+ };
    (@submit, $self:ident, $inner:expr) => {
        fn submit(&mut $self, id: u64, piece: &$crate::Piece, dst: $crate::Dst) -> Result<(), $crate::SourceError> {
            $inner.submit(id, piece, dst)
        }
    };
    (@wait, $self:ident, $inner:expr) => {
        fn wait(
            &mut $self,
            timeout: ::std::time::Duration,
            done: &mut Vec<$crate::Completion>,
        ) -> Result<(), $crate::SourceError> {
            $inner.wait(timeout, done)
        }
    };
    (@depth, $self:ident, $inner:expr) => {
        fn depth(&$self) -> usize {
            $inner.depth()
        }
    };
    (@is_queued, $self:ident, $inner:expr) => {
        fn is_queued(&$self, id: u64) -> bool {
            $inner.is_queued(id)
        }
    };
    (@block, $self:ident, $inner:expr) => {
        fn block(&$self) -> usize {
            $inner.block()
        }
    };
    (@prepare, $self:ident, $inner:expr) => {
        fn prepare(&mut $self, buffers: &[$crate::HostBuf]) {
            $inner.prepare(buffers)
        }
    };
    (@lands_in_device, $self:ident, $inner:expr) => {
        fn lands_in_device(&$self) -> bool {
            $inner.lands_in_device()
        }
    };
    (@prepare_device, $self:ident, $inner:expr) => {
        fn prepare_device(
            &mut $self,
            memory: &dyn $crate::DeviceMemory,
            owner: &::std::sync::Arc<dyn ::std::any::Any + Send + Sync>,
        ) -> Result<(), String> {
            $inner.prepare_device(memory, owner)
        }
    };
    (@name, $self:ident, $inner:expr) => {
        fn name(&$self, file: usize) -> String {
            $inner.name(file)
        }
    };
    (@describe, $self:ident, $inner:expr) => {
        fn describe(&$self) -> String {
            $inner.describe()
        }
    };
}
