package org.opensaml.core.xml;

/** Empty: x-pack-security's classes name it, and would not load without. SAML does not work here. */
public interface XMLObject {}
