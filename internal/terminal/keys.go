package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// quitKeys are q, Ctrl-C and Ctrl-D. A terminal that hands over each key does not turn Ctrl-C into a signal.
const quitKeys = "qQ\x03\x04"

// WatchKeys makes a terminal hand over each key as it is typed, until restore is called. quit is closed by q, Ctrl-C or
// Ctrl-D. If in is no terminal, quit is nil: nobody types.
func WatchKeys(in io.Reader) (quit <-chan struct{}, restore func(), err error) {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}, nil
	}
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, nil, fmt.Errorf("reading keys: %w", err)
	}
	typed := make(chan struct{})
	go func() { // ends with the process: a read of a terminal cannot be called off
		key := make([]byte, 1)
		for {
			if n, err := f.Read(key); n == 0 || err != nil {
				return
			}
			if strings.Contains(quitKeys, string(key)) {
				close(typed)
				return
			}
		}
	}()
	return typed, func() { _ = term.Restore(int(f.Fd()), before) }, nil
}
