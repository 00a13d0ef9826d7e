package raw

import "github.com/firmseal/firmseal/internal/image"

// VerifyHelp implements image.Describer.
func (Format) VerifyHelp() []image.OptionHelp {
	return image.DescribeOptions(profileOptions{}, targetTexts())
}

func targetTexts() map[string]string {
	return map[string]string{
		"encoding": "of the signature file: der (the default), raw (r and s, for ECDSA), base64 or base64-raw",
		"alg":      "the one scheme that the verifier checks with; the default of the key's type if left out",
	}
}
