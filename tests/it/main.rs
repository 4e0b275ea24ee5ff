mod bindings;
mod document;
