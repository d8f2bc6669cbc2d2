//! The two attributes of `idl`: `#[interface]` turns a trait into an interface, `#[message]` makes
//! a type usable in one. Used through `idl`, which documents them; generated code names `::idl`.
//!
//! What is generated is straight-line: no allocation, no dynamic dispatch, no panic on any input.
#![forbid(unsafe_code)]

mod interface;
mod text;

use proc_macro::TokenStream;

/// Turns `pub trait Name` into the interface `Name`: see `idl::interface`.
#[proc_macro_attribute]
pub fn interface(_attributes: TokenStream, item: TokenStream) -> TokenStream {
    let item = syn::parse_macro_input!(item as syn::ItemTrait);
    interface::expand(&item)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

/// Makes a struct or enum a message type: serialisable, comparable, and part of schema hashes.
#[proc_macro_attribute]
pub fn message(_attributes: TokenStream, item: TokenStream) -> TokenStream {
    let item = syn::parse_macro_input!(item as syn::DeriveInput);
    message_impl(&item)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

fn message_impl(item: &syn::DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    if !item.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(
            &item.generics,
            "a message type has no generic parameters: its layout must be one fact",
        ));
    }
    let types: Vec<&syn::Type> = match &item.data {
        syn::Data::Struct(data) => data.fields.iter().map(|field| &field.ty).collect(),
        syn::Data::Enum(data) => data
            .variants
            .iter()
            .flat_map(|variant| variant.fields.iter().map(|field| &field.ty))
            .collect(),
        syn::Data::Union(_) => {
            return Err(syn::Error::new_spanned(
                item,
                "a union cannot be serialised: use an enum",
            ));
        }
    };
    let name = &item.ident;
    let name_text = name.to_string();
    let normal = text::definition(item);
    Ok(quote::quote! {
        #[derive(Clone, Debug, PartialEq, Eq, ::idl::serde::Serialize, ::idl::serde::Deserialize)]
        #[serde(crate = "::idl::serde")]
        #item

        impl ::idl::schema::Schema for #name {
            const HASH: u64 = ::idl::schema::mix(
                ::idl::schema::hash(#normal),
                &[#(<#types as ::idl::schema::Schema>::HASH),*],
            );
            fn collect(into: &mut dyn FnMut(&'static str, &'static str)) {
                into(#name_text, #normal);
                #(<#types as ::idl::schema::Schema>::collect(into);)*
            }
        }
    })
}
