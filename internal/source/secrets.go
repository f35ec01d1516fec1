package source

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Resolve reads the secret that a reference names. Its error names the
// reference and what is wrong, and never holds the value.
type Resolve func(ref string) (string, error)

const maxSecretSize = 64 << 10 // bytes of a file

// ResolveSecret reads a secret from the environment (env:NAME) or from a file
// (file:/absolute/path) of at most 64 KiB; one line end at the end of the file is
// no part of it. An empty secret is an error.
func ResolveSecret(ref string) (string, error) {
	kind, name, ok := splitRef(ref)
	if !ok {
		// It is not repeated: it may be the secret itself.
		return "", errors.New("a secret is named by env:NAME or file:/absolute/path")
	}
	var value string
	if kind == "env" {
		if value, ok = os.LookupEnv(name); !ok {
			return "", fmt.Errorf("%s is not set in this process's environment", ref)
		}
	} else {
		content, err := readSecret(name)
		if err != nil {
			return "", fmt.Errorf("%s cannot be read: %w", ref, err)
		}
		value = strings.TrimSuffix(strings.TrimSuffix(content, "\n"), "\r")
	}
	if value == "" {
		return "", fmt.Errorf("%s is empty", ref)
	}
	return value, nil
}

// readSecret reads a small file. What is no file is not opened: opening a pipe
// would wait for a writer.
func readSecret(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", bare(err)
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("it is no regular file")
	}
	f, err := os.Open(name) //nolint:gosec // whoever may change sources names the file
	if err != nil {
		return "", bare(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	content, err := io.ReadAll(io.LimitReader(f, maxSecretSize+1))
	if err != nil {
		return "", bare(err)
	}
	if len(content) > maxSecretSize {
		return "", errors.New("it is larger than 64 KiB")
	}
	return string(content), nil
}

// bare is an error of a file without the path, which the reference has already.
func bare(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// splitRef takes a reference apart: env and a name, or file and a clean
// absolute path.
func splitRef(ref string) (kind, name string, ok bool) {
	kind, name, ok = strings.Cut(ref, ":")
	switch {
	case !ok:
		return "", "", false
	case kind == "env":
		return kind, name, isVariable(name)
	case kind == "file":
		return kind, name, filepath.IsAbs(name) && filepath.Clean(name) == name && len(name) > 1 && !strings.ContainsRune(name, 0)
	}
	return "", "", false
}

// isVariable reports whether a text is the name of a variable in the sense of
// POSIX, in any case.
func isVariable(name string) bool {
	for i := range len(name) {
		c := name[i]
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (i == 0 || !isDigit(c)) {
			return false
		}
	}
	return name != ""
}

// takes reports whether a method takes a secret, and the secret without its
// prefix.
func (m Method) takes(secret string) (rest string, ok bool) {
	for _, prefix := range m.SecretNot {
		if strings.HasPrefix(secret, prefix) {
			return "", false
		}
	}
	if len(m.SecretPrefix) == 0 {
		return secret, true
	}
	for _, prefix := range m.SecretPrefix {
		if rest, ok := strings.CutPrefix(secret, prefix); ok {
			return rest, true
		}
	}
	return "", false
}

// decodeSecret reads the bytes of a key. The error does not repeat the secret.
func decodeSecret(kind, text string) (key []byte, err error) {
	switch kind {
	case "base64":
		// Padding is often lost when a secret is copied.
		key, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	case "hex":
		key, err = hex.DecodeString(text)
	default:
		key = []byte(text)
	}
	if err != nil {
		return nil, fmt.Errorf("does not hold %s", kind)
	}
	if len(key) == 0 {
		return nil, errors.New("is empty")
	}
	return key, nil
}
