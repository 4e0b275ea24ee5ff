package org.opensaml.saml.saml2.core;

/** Empty: x-pack-security's classes name it, and would not load without. SAML does not work here. */
public interface StatusResponseType {}
