"""The client of VMware Cloud Director Availability. Other packages use `client.Vcda`, the lanes and the poller.

In reading order:

    address       checks VCDA's URL and the thumbprint of its certificate
    credentials   the credentials of the login and of remote sites, as bodies of requests
    http_dates    reads the headers `Date` and `Retry-After`
    transport     httpx's transport over aiohttp's connections
    http          one HTTP call: bounded, never repeated, with certainty whether it was sent
    translate     bytes -> the values of `sync`; never raises
    spellings     the names of the service's user on tasks, learnt from VCDA's answers
    session       one login, shared by all calls and extended to remote sites
    client        the calls: submit, find (look-up), poll, ask
    lanes         each site's limits, pauses and circuit breaker
    poll_policy   when a task is polled next
    poller        polls tasks in batches

The package never retries a POST, follows a redirect, skips the verification of a certificate, or holds state of a
request.
"""
