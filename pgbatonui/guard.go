package pgbatonui

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"slices"
	"strings"
)

// policy is what the page may do in a browser.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; " +
	"base-uri 'none'; frame-ancestors 'none'"

// secure sets the headers of every answer.
func secure(header http.Header) {
	header.Set("Content-Security-Policy", policy)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cache-Control", "no-store")
}

// isFor reports whether a request with this Host is for the page. The port does not count: a tunnel may have another one.
func (h *Handler) isFor(host string) bool {
	if len(h.cfg.Hosts) == 0 {
		return true
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return slices.ContainsFunc(h.cfg.Hosts, func(allowed string) bool { return strings.EqualFold(allowed, host) })
}

// permits reports whether a token is the one that frees. It takes as long for each token of a length.
func (h *Handler) permits(token string) bool {
	given := sha256.Sum256([]byte(token))
	return h.cfg.FreeToken != "" && subtle.ConstantTimeCompare(given[:], h.secret[:]) == 1
}
