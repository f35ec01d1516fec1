package source

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// SecretResolver reads the secret that a reference names. Its error names the reference and what is wrong. It never
// holds the value.
type SecretResolver func(ref string) (string, error)

const maxSecretSize = 64 << 10 // bytes of a file that holds a secret

// ResolveSecret is the SecretResolver of a process. It reads a secret from the environment (env:NAME) or from a file of
// at most 64 KiB (file:/absolute/path). It leaves out one line end at the end of the file. An empty secret is an error.
func ResolveSecret(ref string) (string, error) {
	kind, name, ok := splitRef(ref)
	if !ok {
		// The error does not repeat it, since it may be the secret itself.
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

// readSecret reads a small file. It opens regular files alone, since opening a pipe would wait for a writer.
func readSecret(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", bareError(err)
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("it is no regular file")
	}
	f, err := os.Open(name) //nolint:gosec // whoever may change sources names the file
	if err != nil {
		return "", bareError(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	content, err := io.ReadAll(io.LimitReader(f, maxSecretSize+1))
	if err != nil {
		return "", bareError(err)
	}
	if len(content) > maxSecretSize {
		return "", errors.New("it is larger than 64 KiB")
	}
	return string(content), nil
}

// bareError is an error of a file without its path, which the reference names already.
func bareError(err error) error {
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// splitRef takes a reference apart into env and a name, or file and a clean absolute path.
func splitRef(ref string) (kind, name string, ok bool) {
	kind, name, ok = strings.Cut(ref, ":")
	switch {
	case !ok:
		return "", "", false
	case kind == "env":
		return kind, name, isVariable(name)
	case kind == "file":
		isClean := filepath.IsAbs(name) && filepath.Clean(name) == name && len(name) > 1
		return kind, name, isClean && !strings.ContainsRune(name, 0)
	}
	return "", "", false
}

// isVariable reports whether a text is the name of a variable in the sense of POSIX, in upper or lower case.
func isVariable(name string) bool {
	for i := range len(name) {
		c := name[i]
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (i == 0 || !isDigit(c)) {
			return false
		}
	}
	return name != ""
}
