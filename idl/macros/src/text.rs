//! Normalised source text: what schema hashes are computed from and what the JSON export shows.
//! Spacing, documentation and derives do not count; everything else does.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;

/// Tokens with one space between words and none elsewhere, whatever the compiler's own printer
/// does in this version.
pub fn normal(tokens: TokenStream) -> String {
    let mut out = String::new();
    append(tokens, &mut out);
    out
}

fn append(tokens: TokenStream, out: &mut String) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    proc_macro2::Delimiter::Parenthesis => ("(", ")"),
                    proc_macro2::Delimiter::Brace => ("{", "}"),
                    proc_macro2::Delimiter::Bracket => ("[", "]"),
                    proc_macro2::Delimiter::None => ("", ""),
                };
                out.push_str(open);
                append(group.stream(), out);
                // A trailing comma is spacing too.
                if !close.is_empty() && out.ends_with(',') {
                    out.pop();
                }
                out.push_str(close);
            }
            TokenTree::Punct(punct) => out.push(punct.as_char()),
            word => {
                if out.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                    out.push(' ');
                }
                out.push_str(&word.to_string());
            }
        }
    }
}

/// A type definition without documentation, derives and visibility.
pub fn definition(item: &syn::DeriveInput) -> String {
    let mut item = item.clone();
    item.vis = syn::Visibility::Inherited;
    item.attrs.retain(counts);
    let strip = |fields: &mut syn::Fields| {
        for field in fields.iter_mut() {
            field.vis = syn::Visibility::Inherited;
            field.attrs.retain(counts);
        }
    };
    match &mut item.data {
        syn::Data::Struct(data) => strip(&mut data.fields),
        syn::Data::Enum(data) => {
            for variant in &mut data.variants {
                variant.attrs.retain(counts);
                strip(&mut variant.fields);
            }
        }
        syn::Data::Union(_) => {}
    }
    normal(item.to_token_stream())
}

/// Attributes of serde change what is on the wire; no other one does.
fn counts(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("serde")
}
