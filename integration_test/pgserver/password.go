package pgserver

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
)

// authMethod has a client send its password as it is, over the loopback: to prove it by SCRAM-SHA-256 is nearly all that a
// client with the race detector has to do to connect, and tests connect many thousand times.
const authMethod = "password"

// hastenLogin stores the superuser's password again such that one round of hashing tells whether a login is right, in
// place of 4,096.
func (s *Server) hastenLogin(ctx context.Context) error {
	u, err := url.Parse(s.url)
	if err != nil {
		return fmt.Errorf("pgserver: read the server's URL: %w", err)
	}
	password, _ := u.User.Password()
	verifier, err := scramVerifier(password, 1)
	if err != nil {
		return err
	}
	// ALTER ROLE takes no parameters, and a verifier has no characters that need to be quoted.
	if err := s.exec(ctx, "ALTER ROLE CURRENT_USER PASSWORD '"+verifier+"'"); err != nil {
		return fmt.Errorf("pgserver: store the password: %w", err)
	}
	return nil
}

// scramVerifier is what PostgreSQL stores of a password of ASCII characters. RFC 5803 describes it.
func scramVerifier(password string, iterations int) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("pgserver: hash the password: %w", err)
	}
	mac := func(text string) []byte {
		m := hmac.New(sha256.New, salted)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, text(salt), text(stored[:]), text(mac("Server Key"))), nil
}
