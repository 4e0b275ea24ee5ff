mod bindings;
mod servers;
mod support;
