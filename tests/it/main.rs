mod bindings;
mod demo;
mod document;
mod e2e;
mod servers;
mod support;
mod tls;
