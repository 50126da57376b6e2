//! Loops that are always unrolled.

/// The body for each `i` below `n`, at most eight, written out: a loop of constant length whose body is long stays a loop, and
/// what it indexes goes to local memory (docs/ptx.md).
macro_rules! unrolled {
    ($i:ident < $n:expr, $body:block) => {
        unrolled!(@ $i $n, $body; 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident $n:expr, $body:block; $($index:literal)*) => {
        $(if $index < $n {
            let $i: usize = $index;
            $body
        })*
    };
}
