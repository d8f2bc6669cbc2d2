//! Expansion of `#[interface]`: checks the trait, then generates tag, requests, replies, server
//! trait, dispatcher and client.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use syn::{Error, FnArg, ItemTrait, Pat, Result, ReturnType, TraitItem, Type};

use crate::text;

/// Capabilities that one message carries at most (`microvisor_abi::message::CAPS_MAX`).
const CAPS_MAX: usize = 4;

/// An argument or a part of an answer: bytes, or a capability beside them.
struct Value {
    name: Ident,
    ty: Type,
    cap: bool,
}

struct Method {
    name: Ident,
    variant: Ident,
    number: u32,
    docs: Vec<syn::Attribute>,
    arguments: Vec<Value>,
    /// What a successful answer consists of; one value stands for itself, not for a tuple of one.
    answers: Vec<Value>,
    answer_type: Type,
    /// The interface's own error, when the method returns a `Result`.
    error: Option<Type>,
    text: String,
}

pub fn expand(item: &ItemTrait) -> Result<TokenStream> {
    if !item.generics.params.is_empty() || !item.supertraits.is_empty() {
        return Err(Error::new_spanned(
            &item.ident,
            "an interface has no generic parameters and no supertraits",
        ));
    }
    let mut methods = Vec::new();
    for (index, member) in item.items.iter().enumerate() {
        let TraitItem::Fn(function) = member else {
            return Err(Error::new_spanned(
                member,
                "an interface holds only methods",
            ));
        };
        methods.push(Method::parse(function, index as u32 + 1)?);
    }
    Ok(generate(item, &methods))
}

impl Method {
    fn parse(function: &syn::TraitItemFn, number: u32) -> Result<Method> {
        let signature = &function.sig;
        if let Some(block) = &function.default {
            return Err(Error::new_spanned(
                block,
                "a method of an interface has no body",
            ));
        }
        if !signature.generics.params.is_empty()
            || signature.asyncness.is_some()
            || signature.unsafety.is_some()
        {
            return Err(Error::new_spanned(
                signature,
                "a method of an interface is not generic, async or unsafe",
            ));
        }
        let mut inputs = signature.inputs.iter();
        if !matches!(inputs.next(), Some(FnArg::Receiver(receiver))
            if receiver.reference.is_some() && receiver.mutability.is_none())
        {
            return Err(Error::new_spanned(
                signature,
                "the first argument must be `&self`",
            ));
        }
        let mut arguments = Vec::new();
        for input in inputs {
            let FnArg::Typed(typed) = input else {
                return Err(Error::new_spanned(input, "unexpected `self`"));
            };
            let Pat::Ident(pattern) = &*typed.pat else {
                return Err(Error::new_spanned(
                    &typed.pat,
                    "an argument is a plain name",
                ));
            };
            arguments.push(Value::new(pattern.ident.clone(), &typed.ty)?);
        }
        let unit: Type = syn::parse_quote!(());
        let (answer_type, error) = match &signature.output {
            ReturnType::Default => (unit, None),
            ReturnType::Type(_, ty) => split_result(ty)?,
        };
        let answers = match &answer_type {
            Type::Tuple(tuple) => tuple
                .elems
                .iter()
                .enumerate()
                .map(|(index, ty)| Value::new(format_ident!("part{index}"), ty))
                .collect::<Result<Vec<_>>>()?,
            ty => vec![Value::new(format_ident!("part0"), ty)?],
        };
        for values in [&arguments, &answers] {
            if values.iter().filter(|value| value.cap).count() > CAPS_MAX {
                return Err(Error::new_spanned(
                    signature,
                    "a message carries at most 4 capabilities",
                ));
            }
        }
        let mut clean = signature.clone();
        for input in &mut clean.inputs {
            if let FnArg::Typed(typed) = input {
                typed.attrs.clear();
            }
        }
        Ok(Method {
            name: signature.ident.clone(),
            variant: format_ident!("{}", camel(&signature.ident.to_string())),
            number,
            docs: function
                .attrs
                .iter()
                .filter(|attribute| attribute.path().is_ident("doc"))
                .cloned()
                .collect(),
            arguments,
            answers,
            answer_type,
            error,
            text: text::normal(quote!(#clean)),
        })
    }

    /// Every type that has a schema.
    fn types(&self) -> impl Iterator<Item = &Type> {
        self.arguments
            .iter()
            .chain(&self.answers)
            .map(|value| &value.ty)
            .chain(&self.error)
    }
}

impl Value {
    fn new(name: Ident, ty: &Type) -> Result<Value> {
        if matches!(ty, Type::Reference(_)) {
            return Err(Error::new_spanned(
                ty,
                "messages own what they carry (the buffer is reused by the next call): \
                 use `heapless::String`, `heapless::Vec` or `idl::Bytes`",
            ));
        }
        let cap = matches!(ty, Type::Path(path)
            if path.path.segments.last().is_some_and(|segment| segment.ident == "Cap"));
        Ok(Value {
            name,
            ty: ty.clone(),
            cap,
        })
    }
}

fn split_result(ty: &Type) -> Result<(Type, Option<Type>)> {
    if let Type::Path(path) = ty
        && let Some(segment) = path.path.segments.last()
        && segment.ident == "Result"
    {
        let syn::PathArguments::AngleBracketed(arguments) = &segment.arguments else {
            return Err(Error::new_spanned(ty, "write `Result<Answer, Error>`"));
        };
        let mut types = arguments.args.iter().filter_map(|argument| match argument {
            syn::GenericArgument::Type(ty) => Some(ty.clone()),
            _ => None,
        });
        return match (types.next(), types.next()) {
            (Some(answer), Some(error)) => Ok((answer, Some(error))),
            _ => Err(Error::new_spanned(ty, "write `Result<Answer, Error>`")),
        };
    }
    Ok((ty.clone(), None))
}

fn camel(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_uppercase().chain(letters).collect::<String>())
                .unwrap_or_default()
        })
        .collect()
}

fn generate(item: &ItemTrait, methods: &[Method]) -> TokenStream {
    let tag = &item.ident;
    let visibility = &item.vis;
    let docs: Vec<_> = item
        .attrs
        .iter()
        .filter(|attribute| attribute.path().is_ident("doc"))
        .collect();
    let request = format_ident!("{tag}Request");
    let reply = format_ident!("{tag}Reply");
    let server = format_ident!("{tag}Server");
    let client = format_ident!("{tag}Client");
    let wire_name = snake(&tag.to_string());

    let requests = request_items(visibility, tag, &request, methods);
    let replies = reply_items(visibility, tag, &reply, methods);
    let clients = client_items(visibility, tag, &client, &request, methods);

    let server_methods = methods.iter().map(|method| {
        let (docs, name) = (&method.docs, &method.name);
        let arguments = method.arguments.iter().map(|value| {
            let (name, ty) = (&value.name, &value.ty);
            quote!(#name: #ty)
        });
        let output = output_type(method);
        quote!(#(#docs)* fn #name(&mut self, client: u64 #(, #arguments)*) -> #output;)
    });
    let server_doc = format!(
        "What a server of [`{tag}`] implements. `client` is the badge of the endpoint capability \
         that the caller used: root chose it, the caller cannot forge it."
    );
    let arms = methods.iter().map(|method| {
        let (name, variant) = (&method.name, &method.variant);
        let names: Vec<_> = method.arguments.iter().map(|value| &value.name).collect();
        // The variant is known in each arm, so encoding it is straight-line.
        quote!(#request::#variant { #(#names),* } => {
            let reply = #reply::#variant(server.#name(client #(, #names)*));
            Ok(answer.send(|out| ::idl::wire::Encode::encode(&reply, out)))
        })
    });

    let most = |values: fn(&Method) -> &Vec<Value>| {
        methods
            .iter()
            .map(|method| values(method).iter().filter(|value| value.cap).count())
            .max()
            .unwrap_or(0)
    };
    let request_caps = most(|method| &method.arguments);
    let reply_caps = most(|method| &method.answers);
    let texts: Vec<_> = methods.iter().map(|method| &method.text).collect();
    let names: Vec<_> = methods
        .iter()
        .map(|method| method.name.to_string())
        .collect();
    let numbers: Vec<_> = methods.iter().map(|method| method.number).collect();
    let types: Vec<_> = methods.iter().flat_map(Method::types).collect();
    let whole = format!(
        "{wire_name}:{}",
        texts
            .iter()
            .fold(String::new(), |all, text| all + text + ";")
    );

    quote! {
        #(#docs)*
        #[derive(Clone, Copy, Debug)]
        #visibility enum #tag {}

        #requests
        #replies

        #[doc = #server_doc]
        #visibility trait #server { #(#server_methods)* }

        impl ::idl::Interface for #tag {
            const NAME: &'static str = #wire_name;
            const HASH: u64 = ::idl::schema::mix(
                ::idl::schema::hash(#whole),
                &[#(<#types as ::idl::schema::Schema>::HASH),*],
            );
            const REQUEST_CAPS: usize = #request_caps;
            const REPLY_CAPS: usize = #reply_caps;
            const METHODS: &'static [::idl::schema::Method] = &[
                #(::idl::schema::Method { number: #numbers, name: #names, signature: #texts }),*
            ];
            fn types(into: &mut dyn FnMut(&'static str, &'static str)) {
                #(<#types as ::idl::schema::Schema>::collect(into);)*
            }
        }

        impl<S: #server> ::idl::Dispatch<S> for #tag {
            #[inline(always)]
            fn dispatch<A: ::idl::Answer>(
                server: &mut S,
                client: u64,
                method: u32,
                bytes: &[u8],
                caps: &[u32],
                answer: A,
            ) -> Result<A::Sent, ::idl::Refusal> {
                if method == ::idl::HELLO {
                    let reply = #reply::Hello(<#tag as ::idl::Interface>::HASH);
                    return Ok(answer.send(|out| ::idl::wire::Encode::encode(&reply, out)));
                }
                match #request::decode(method, bytes, caps)? { #(#arms)* }
            }
        }

        #clients
    }
}

/// What the method returns to the program that calls or implements it.
fn output_type(method: &Method) -> TokenStream {
    let answer = &method.answer_type;
    match &method.error {
        Some(error) => quote!(Result<#answer, #error>),
        None => quote!(#answer),
    }
}

fn request_items(
    visibility: &syn::Visibility,
    tag: &Ident,
    request: &Ident,
    methods: &[Method],
) -> TokenStream {
    let doc = format!("A request to a server of [`{tag}`].");
    let variants = methods.iter().map(|method| {
        let (docs, variant) = (&method.docs, &method.variant);
        let names = method.arguments.iter().map(|value| &value.name);
        let types = method.arguments.iter().map(|value| &value.ty);
        let field_docs = method
            .arguments
            .iter()
            .map(|value| format!("Argument `{}`.", value.name));
        quote!(#(#docs)* #variant { #(#[doc = #field_docs] #names: #types),* })
    });
    let numbers = methods.iter().map(|method| {
        let (variant, number) = (&method.variant, method.number);
        quote!(#request::#variant { .. } => #number)
    });
    let encoders = methods.iter().map(|method| {
        let variant = &method.variant;
        let names = method.arguments.iter().map(|value| &value.name);
        let writes = encode_values(&method.arguments);
        quote!(#request::#variant { #(#names),* } => { #writes })
    });
    let decoders = methods.iter().map(|method| {
        let (variant, number) = (&method.variant, method.number);
        let names = method.arguments.iter().map(|value| &value.name);
        let reads = decode_values(&method.arguments);
        quote!(#number => { #reads Ok(#request::#variant { #(#names),* }) })
    });
    quote! {
        #[doc = #doc]
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant)]
        #visibility enum #request { #(#variants,)* }

        impl #request {
            /// The number that goes into the message's label.
            #[inline(always)]
            pub fn method(&self) -> u32 {
                match self { #(#numbers,)* }
            }

            /// Writes the arguments; capabilities go beside the bytes.
            #[inline(always)]
            pub fn encode(&self, out: &mut ::idl::wire::Writer<'_>) -> Result<(), ::idl::wire::Error> {
                match self { #(#encoders)* }
                Ok(())
            }

            /// Reads a request of `method`; any bytes are accepted or refused, never trusted.
            #[inline(always)]
            pub fn decode(method: u32, bytes: &[u8], caps: &[u32]) -> Result<#request, ::idl::Refusal> {
                #[allow(unused_mut)]
                let mut from = ::idl::wire::Reader::new(bytes, caps);
                match method {
                    #(#decoders)*
                    _ => Err(::idl::Refusal::Method),
                }
            }
        }
    }
}

fn reply_items(
    visibility: &syn::Visibility,
    tag: &Ident,
    reply: &Ident,
    methods: &[Method],
) -> TokenStream {
    let doc = format!("An answer of a server of [`{tag}`].");
    let variants = methods.iter().map(|method| {
        let (variant, output) = (&method.variant, output_type(method));
        let doc = format!("To `{}`.", method.name);
        quote!(#[doc = #doc] #variant(#output))
    });
    let encoders = methods.iter().map(|method| {
        let variant = &method.variant;
        let names: Vec<_> = method.answers.iter().map(|value| &value.name).collect();
        let pattern = answer_pattern(method, &names);
        let writes = encode_values(&method.answers);
        if method.error.is_some() {
            quote!(#reply::#variant(answer) => match answer {
                Ok(#pattern) => { out.put(&true)?; #writes }
                Err(error) => { out.put(&false)?; out.put(error)?; }
            })
        } else {
            quote!(#reply::#variant(#pattern) => { #writes })
        }
    });
    quote! {
        #[doc = #doc]
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant)]
        #visibility enum #reply {
            /// To the schema check: the server's hash.
            Hello(u64),
            #(#variants,)*
        }

        impl ::idl::wire::Encode for #reply {
            #[inline(always)]
            fn encode(&self, out: &mut ::idl::wire::Writer<'_>) -> Result<(), ::idl::wire::Error> {
                match self {
                    #reply::Hello(hash) => out.put(hash)?,
                    #(#encoders)*
                }
                Ok(())
            }
        }
    }
}

fn client_items(
    visibility: &syn::Visibility,
    tag: &Ident,
    client: &Ident,
    request: &Ident,
    methods: &[Method],
) -> TokenStream {
    let doc = format!("Calls a server of [`{tag}`].");
    let functions = methods.iter().map(|method| {
        let (docs, name, variant) = (&method.docs, &method.name, &method.variant);
        let names: Vec<_> = method.arguments.iter().map(|value| &value.name).collect();
        let types = method.arguments.iter().map(|value| &value.ty);
        let caps = method.answers.iter().filter(|value| value.cap).count();
        let answer = &method.answer_type;
        let error = match &method.error {
            Some(error) => quote!(#error),
            None => quote!(::core::convert::Infallible),
        };
        let parts: Vec<_> = method.answers.iter().map(|value| &value.name).collect();
        let reads = decode_values(&method.answers);
        let value = answer_pattern(method, &parts);
        let check = method.error.as_ref().map(|_| {
            quote!(if !from.get::<bool>()? {
                let error = from.get()?;
                from.end()?;
                return Ok(Err(error));
            })
        });
        quote! {
            #(#docs)*
            #[inline(always)]
            pub fn #name(&self #(, #names: #types)*) -> Result<#answer, ::idl::CallError<#error, T::Error>> {
                let request = #request::#variant { #(#names),* };
                ::idl::flatten(self.transport.call(
                    request.method(),
                    #caps,
                    |out| request.encode(out),
                    |mut from| -> Result<Result<#answer, #error>, ::idl::Refusal> {
                        #check
                        #reads
                        Ok(Ok(#value))
                    },
                ))
            }
        }
    });
    quote! {
        #[doc = #doc]
        #[derive(Clone, Debug)]
        #visibility struct #client<T> { transport: T }

        impl<T: ::idl::Transport> #client<T> {
            /// Asks the server for its schema hash and refuses one that is not ours.
            pub fn connect(transport: T) -> Result<Self, ::idl::ConnectError<T::Error>> {
                ::idl::hello(&transport, <#tag as ::idl::Interface>::HASH)?;
                Ok(#client { transport })
            }

            #(#functions)*
        }
    }
}

/// The expression or pattern for an answer's parts; a single part is not a tuple.
fn answer_pattern(method: &Method, names: &[&Ident]) -> TokenStream {
    match &method.answer_type {
        Type::Tuple(_) if names.len() == 1 => quote!((#(#names,)*)),
        Type::Tuple(_) => quote!((#(#names),*)),
        _ => quote!(#(#names)*),
    }
}

fn encode_values(values: &[Value]) -> TokenStream {
    values
        .iter()
        .map(|value| {
            let name = &value.name;
            if value.cap {
                quote!(out.put_cap(*#name)?;)
            } else {
                quote!(out.put(#name)?;)
            }
        })
        .collect()
}

fn decode_values(values: &[Value]) -> TokenStream {
    let reads: TokenStream = values
        .iter()
        .map(|value| {
            let (name, ty) = (&value.name, &value.ty);
            if value.cap {
                quote!(let #name: #ty = from.get_cap()?;)
            } else {
                quote!(let #name: #ty = from.get()?;)
            }
        })
        .collect();
    quote!(#reads from.end()?;)
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(letter.to_lowercase());
    }
    out
}
