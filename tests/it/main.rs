mod bindings;
mod document;
mod servers;
mod support;
mod tls;
