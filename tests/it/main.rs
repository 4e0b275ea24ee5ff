mod bindings;
mod demo;
mod document;
mod servers;
mod support;
mod tls;
