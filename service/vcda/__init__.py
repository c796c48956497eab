"""VMware Cloud Director Availability, as far as this service meets it. `client.Vcda` is all that others use.

In reading order:

    credentials   who we say we are, and the words in which VCDA wants to hear it
    moments       what HTTP's `Date` and `Retry-After` say about time
    transport     one HTTP call: bounded, never repeated, and certain about whether a byte left
    translate     bytes -> the values of `sync`; total, whatever the bytes
    spellings     how tasks name our user, as far as VCDA has shown
    session       one login shared by all calls, extended to remote sites
    client        the calls themselves

What it never does: retry a POST, follow a redirect, skip the check of a certificate, hold state of a request.
"""
