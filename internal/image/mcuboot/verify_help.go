package mcuboot

import "github.com/firmseal/firmseal/internal/image"

// VerifyHelp implements image.Describer.
func (Format) VerifyHelp() []image.OptionHelp {
	return image.DescribeOptions(profileOptions{}, targetTexts())
}

func targetTexts() map[string]string {
	return map[string]string{
		"signature":           "the one type compiled in: ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, ed25519, or none; that of the keys if left out",
		"sha":                 "512 for an Ed25519 build over SHA-512",
		"keys":                "match (the default), bypass (MCUBOOT_BYPASS_KEY_MATCH) or hw-key (MCUBOOT_HW_KEY)",
		"rollback-protection": "MCUBOOT_HW_ROLLBACK_PROT; on where the device's counter is known",
		"allow-list":          "MCUBOOT_USE_TLV_ALLOW_LIST; on if left out",
		"non-bootable":        "the image is one that the device checks and does not start",
		"slot-size":           "size of the slot",
		"max-image-size":      "the slot without its trailer",
		"slot-address":        "for images with a rom-fixed address",
	}
}
