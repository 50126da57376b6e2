//! `#[kernel]`: one function, an entry point on the GPU and a launchable type on the host.

use proc_macro::TokenStream;
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{Error, FnArg, Ident, ItemFn, LitStr, Pat, ReturnType, Token, parse_macro_input, spanned::Spanned};

/// `"module"` or `"module", prefetch`.
struct Attribute {
    module: LitStr,
    prefetch: bool,
}

impl Parse for Attribute {
    fn parse(input: ParseStream<'_>) -> Result<Self, Error> {
        let module = input.parse()?;
        if input.is_empty() {
            return Ok(Self { module, prefetch: false });
        }
        input.parse::<Token![,]>()?;
        let option: Ident = input.parse()?;
        if option != "prefetch" {
            return Err(Error::new(option.span(), "the one option that a kernel has is `prefetch`"));
        }
        Ok(Self { module, prefetch: true })
    }
}

/// Marks `pub unsafe fn name(args…)` as a kernel of the PTX module named in `#[kernel("module")]`.
///
/// For `nvptx64` the function becomes an `extern "ptx-kernel"` entry of that name. For the host it stays a function, and an
/// empty enum of the same name implements `cuda_std::kernel::Kernel`, which is what launches name.
///
/// The entry begins with `grid::launch_dependents(); grid::wait();` of `cuda_std`: the next kernel may start early, and this
/// one touches nothing before the last one has finished. With `#[kernel("module", prefetch)]` it does not: the kernel calls
/// both itself, by the rules of `cuda_std::grid`, and its documentation says what it touches before it waits.
#[proc_macro_attribute]
pub fn kernel(attr: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = parse_macro_input!(attr as Attribute);
    let function = parse_macro_input!(item as ItemFn);
    expand(attribute, function).unwrap_or_else(Error::into_compile_error).into()
}

fn expand(Attribute { module, prefetch }: Attribute, function: ItemFn) -> Result<proc_macro2::TokenStream, Error> {
    let signature = &function.sig;
    if signature.unsafety.is_none() {
        return Err(Error::new(signature.span(), "a kernel takes raw device pointers: declare it `unsafe fn`"));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(signature.generics.span(), "a kernel is not generic: call a generic function from it"));
    }
    if !matches!(signature.output, ReturnType::Default) {
        return Err(Error::new(signature.output.span(), "a kernel returns nothing"));
    }
    let (name, vis, attrs, inputs, block) =
        (&signature.ident, &function.vis, &function.attrs, &signature.inputs, &function.block);
    let (mut names, mut types) = (Vec::new(), Vec::new());
    for input in inputs {
        match input {
            FnArg::Typed(arg) if matches!(*arg.pat, Pat::Ident(_)) => {
                names.push(&arg.pat);
                types.push(&arg.ty);
            }
            other => return Err(Error::new(other.span(), "a kernel's parameters are plain `name: type`")),
        }
    }
    let docs: Vec<_> = attrs.iter().filter(|a| a.path().is_ident("doc")).collect();
    let order = (!prefetch).then(|| quote! { ::cuda_std::grid::launch_dependents(); ::cuda_std::grid::wait(); });
    Ok(quote! {
        #(#attrs)*
        #[cfg(target_arch = "nvptx64")]
        #[unsafe(no_mangle)]
        #vis unsafe extern "ptx-kernel" fn #name(#inputs) {
            #order
            #block
        }

        #(#attrs)*
        #[cfg(not(target_arch = "nvptx64"))]
        #[allow(clippy::too_many_arguments)]
        #vis unsafe fn #name(#inputs) #block

        #(#docs)*
        #[cfg(not(target_arch = "nvptx64"))]
        #[allow(non_camel_case_types)]
        #vis enum #name {}

        #[cfg(not(target_arch = "nvptx64"))]
        impl ::cuda_std::kernel::Kernel for #name {
            const NAME: &'static str = ::core::stringify!(#name);
            const MODULE: &'static str = #module;
            const PREFETCH: bool = #prefetch;
            type Args = (#(#types,)*);
            unsafe fn run((#(#names,)*): Self::Args) {
                // SAFETY: the caller's promise.
                unsafe { #name(#(#names),*) }
            }
        }

        #[cfg(not(target_arch = "nvptx64"))]
        ::cuda_std::inventory::submit! { ::cuda_std::kernel::Entry::of::<#name>() }
    })
}
